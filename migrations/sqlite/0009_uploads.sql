-- Uploads in parts that are not complete. Parts lie in storage; these rows say which, and until when.
-- `stage` is how the storage calls the upload. One for each contributor, NAR and compression.
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    contributor_id TEXT NOT NULL REFERENCES contributors (id),
    nar_hash TEXT NOT NULL,
    compression TEXT NOT NULL,
    part_size INTEGER NOT NULL,
    stage TEXT NOT NULL,
    -- Set when all parts were there and the file began to be verified: from then on no part changes.
    closed_at INTEGER,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (cache_id, contributor_id, nar_hash, compression)
) STRICT;

CREATE INDEX uploads_by_expiry ON uploads (expires_at);

-- `tag` is the storage's word for the part.
CREATE TABLE upload_parts (
    upload_id TEXT NOT NULL REFERENCES uploads (id),
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    tag TEXT NOT NULL,
    PRIMARY KEY (upload_id, number)
) STRICT;
