-- What happens to the keys of a cache over a longer time than a call. `kind`: planned (a new key comes, an old one
-- goes), resign (what is published gets the signature of a key), compromise, drop (signatures of a retired key go).
CREATE TABLE key_rotations (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    kind TEXT NOT NULL,
    old_key_id TEXT REFERENCES signing_keys (id),
    new_key_id TEXT REFERENCES signing_keys (id),
    step TEXT NOT NULL,
    step_since INTEGER NOT NULL,
    -- The steps so far, each with its beginning: a JSON list of pairs.
    steps TEXT NOT NULL,
    publish_days INTEGER NOT NULL,
    wait_days INTEGER NOT NULL,
    -- How far the step has come: an index of the log, then the id of a realisation.
    log_cursor INTEGER NOT NULL,
    realisation_cursor TEXT NOT NULL,
    -- Paths and realisations of the step: all, done, and refused because the log does not account for them.
    total INTEGER NOT NULL,
    done INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    paused_at INTEGER,
    -- Which replica works on it, and until when no other one does.
    lease_owner TEXT,
    lease_until INTEGER,
    contributor_id TEXT,
    token_id TEXT,
    reason TEXT,
    started_at INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;

-- One at a time for a cache.
CREATE UNIQUE INDEX key_rotations_open ON key_rotations (cache_id) WHERE ended_at IS NULL;

CREATE INDEX key_rotations_by_cache ON key_rotations (cache_id, id);

-- Signatures under the name of a key of ours that no leaf accounts for. `place`: rows or storage; `subject`: the
-- path's base name, or the object of a realisation.
CREATE TABLE unlogged_signatures (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    key_name TEXT NOT NULL,
    place TEXT NOT NULL,
    subject TEXT NOT NULL,
    signature TEXT NOT NULL,
    found_at INTEGER NOT NULL,
    UNIQUE (key_name, place, subject, signature)
) STRICT;

-- What a key has signed, in the order of the log.
CREATE INDEX signatures_by_key ON signatures (key_name, leaf);
