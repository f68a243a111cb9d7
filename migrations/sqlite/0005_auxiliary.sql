-- Listings, build logs and debug-info links. `subject` is what makes one visible: the path's hash for
-- a listing, the NAR's file name for a debug-info link, nothing for a log. `body` is zstd.
CREATE TABLE auxiliary (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,
    contributor_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    stored_at INTEGER NOT NULL,
    visible_at INTEGER,
    UNIQUE (cache_id, kind, name)
) STRICT;

CREATE INDEX auxiliary_by_subject ON auxiliary (cache_id, kind, subject);

-- Build trace entries of content-addressed derivations, signed here; write-once.
CREATE TABLE realisations (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    object TEXT NOT NULL,
    output_hash TEXT NOT NULL,
    body TEXT NOT NULL,
    signatures TEXT NOT NULL,
    contributor_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (cache_id, object)
) STRICT;

CREATE INDEX realisations_by_output ON realisations (cache_id, output_hash);
