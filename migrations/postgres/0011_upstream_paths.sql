-- Paths that an upstream of a cache holds: what its narinfo signs, and the signature, which is verified again
-- at each use. So references to them count as covered without asking the upstream once more.
CREATE TABLE upstream_paths (
    cache_id TEXT NOT NULL REFERENCES caches (id),
    hash TEXT NOT NULL,
    store_path TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    nar_size BIGINT NOT NULL,
    -- Base names, sorted, separated by spaces.
    refs TEXT NOT NULL,
    upstream_url TEXT NOT NULL,
    key_name TEXT NOT NULL,
    sig BYTEA NOT NULL,
    checked_at BIGINT NOT NULL,
    PRIMARY KEY (cache_id, hash)
);
