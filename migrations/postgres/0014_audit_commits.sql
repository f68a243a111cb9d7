-- Commitments of the signature log to audit rows. Each row gets a salt and a salted hash of its text when it is
-- committed to; erasing a row takes the salt and what it says of people, and leaves the hash.
ALTER TABLE audit ADD COLUMN commit_seq BIGINT;

ALTER TABLE audit ADD COLUMN salt TEXT;

ALTER TABLE audit ADD COLUMN commitment TEXT;

ALTER TABLE audit ADD COLUMN erased_at BIGINT;

CREATE INDEX audit_by_commit ON audit (commit_seq, id);

-- One row for each leaf `audit-commit`. `head` is the hash over the rows of this one and of all before it.
CREATE TABLE audit_commits (
    seq BIGINT PRIMARY KEY,
    leaf BIGINT,
    row_count BIGINT NOT NULL,
    head TEXT NOT NULL,
    at BIGINT NOT NULL
);

ALTER TABLE contributors ADD COLUMN erased_at BIGINT;

-- From a leaf to the signature that it accounts for.
CREATE INDEX signatures_by_leaf ON signatures (leaf);
