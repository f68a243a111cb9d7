-- Other keys in the places of ROOT and of the key-encryption keys (KEK).

-- Which ROOT the slots wrap, and which KEK seals what is written from now on. A replica that holds others follows.
ALTER TABLE cluster ADD COLUMN root_version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE cluster ADD COLUMN kek_version BIGINT NOT NULL DEFAULT 1;

-- `state`: active (seals what is new), retiring (rows are still sealed with it), retired (overwritten, at this time).
ALTER TABLE vault_keks ADD COLUMN retired_at BIGINT;

-- Rows that are sealed anew under a KEK. `state`: rewrap, done, superseded (by the rotation to a later KEK).
CREATE TABLE kek_rotations (
    id TEXT PRIMARY KEY,
    kek_version BIGINT NOT NULL UNIQUE REFERENCES vault_keks (version),
    state TEXT NOT NULL,
    -- How far this pass has come: the last row that was looked at of signing_keys, then of webhooks.
    key_cursor TEXT NOT NULL,
    webhook_cursor TEXT NOT NULL,
    -- Rows: all that there were at the beginning, and those that were sealed anew.
    total BIGINT NOT NULL,
    done BIGINT NOT NULL,
    -- What this pass found that does not open: a JSON list of names.
    damaged TEXT NOT NULL,
    -- When the next batch may come.
    due_at BIGINT NOT NULL,
    -- Which replica works on it, and until when no other one does.
    lease_owner TEXT,
    lease_until BIGINT,
    contributor_id TEXT,
    token_id TEXT,
    started_at BIGINT NOT NULL,
    ended_at BIGINT
);
