-- Whose evidence counts no longer: that of a contributor, of a token and what it issued, or that for one path.
-- Of each subject at most one is not restored. Work stops and goes on anywhere between begin and done, and
-- between restoring and restored: the rows say how far it is.
CREATE TABLE quarantines (
    id TEXT PRIMARY KEY,
    subject_kind TEXT NOT NULL,
    -- A contributor's, token's or path's id.
    subject_id TEXT NOT NULL,
    -- As people name it.
    subject TEXT NOT NULL,
    -- Evidence from this moment on is void.
    since INTEGER NOT NULL,
    reason TEXT NOT NULL,
    -- Set where tokens that the subject issued are left alone.
    keep_issued_at INTEGER,
    -- Set where what refers to a withdrawn path is withdrawn too.
    dependents_at INTEGER,
    contributor_id TEXT,
    token_id TEXT,
    begun_at INTEGER NOT NULL,
    -- When a batch of it was committed last: while that is not long ago, somebody is at it.
    advanced_at INTEGER NOT NULL,
    -- When the subject's tokens were dead: those that are issued later are none of its matter.
    tokens_dead_at INTEGER,
    done_at INTEGER,
    restoring_at INTEGER,
    restore_reason TEXT,
    restorer_contributor_id TEXT,
    restorer_token_id TEXT,
    restored_at INTEGER
) STRICT;

CREATE UNIQUE INDEX quarantines_standing ON quarantines (subject_kind, subject_id) WHERE restored_at IS NULL;

CREATE INDEX quarantines_by_subject ON quarantines (subject_kind, subject_id, id);

-- Each time that a path was withdrawn, and with which claim. Never deleted: who pulled it may ask.
CREATE TABLE withdrawals (
    id TEXT PRIMARY KEY,
    quarantine_id TEXT NOT NULL REFERENCES quarantines (id),
    cache_id TEXT NOT NULL REFERENCES caches (id),
    path_id TEXT NOT NULL REFERENCES paths (id),
    claim_id TEXT NOT NULL REFERENCES claims (id),
    -- `evidence`: none was left; `dependent`: it refers to a path that was withdrawn.
    cause TEXT NOT NULL,
    at INTEGER NOT NULL,
    ended_at INTEGER,
    -- restored, republished, superseded, deleted, held (by another quarantine) or lost (its NAR).
    ended_how TEXT
) STRICT;

CREATE INDEX withdrawals_by_quarantine ON withdrawals (quarantine_id, id);

CREATE INDEX withdrawals_by_cache ON withdrawals (cache_id, at);

CREATE INDEX withdrawals_by_path ON withdrawals (path_id);

-- Listings and debug-info links of withdrawn claims, as they stood, until these are restored or deleted.
CREATE TABLE withdrawn_auxiliary (
    id TEXT PRIMARY KEY,
    claim_id TEXT NOT NULL REFERENCES claims (id),
    cache_id TEXT NOT NULL REFERENCES caches (id),
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    subject TEXT NOT NULL,
    body BLOB NOT NULL,
    contributor_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    stored_at INTEGER NOT NULL,
    visible_at INTEGER NOT NULL
) STRICT;

CREATE INDEX withdrawn_auxiliary_by_claim ON withdrawn_auxiliary (claim_id);

-- The quarantine that voids the entry.
ALTER TABLE realisations ADD COLUMN void_by TEXT;

CREATE INDEX realisations_by_contributor ON realisations (contributor_id, created_at);

CREATE INDEX realisations_by_token ON realisations (token_id);

CREATE INDEX realisations_by_void ON realisations (void_by) WHERE void_by IS NOT NULL;

CREATE INDEX evidence_by_void ON evidence (void_by) WHERE void_by IS NOT NULL;
