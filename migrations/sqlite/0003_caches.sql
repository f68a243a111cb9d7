CREATE TABLE caches (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    visibility TEXT NOT NULL,
    priority INTEGER NOT NULL,
    prefix TEXT NOT NULL,
    upstream_paths TEXT NOT NULL,
    undeclared_references TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT;

CREATE TABLE upstreams (
    cache_id TEXT NOT NULL REFERENCES caches (id),
    position INTEGER NOT NULL,
    url TEXT NOT NULL,
    public_keys TEXT NOT NULL,
    PRIMARY KEY (cache_id, position)
) STRICT;

-- One row, counted up by whatever a replica's memory must not outlive by more than a second:
-- revocation, suspension, withdrawal, deletion, another signature on a published path, a changed cache.
CREATE TABLE change_epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
) STRICT;

INSERT INTO change_epoch (id, epoch) VALUES (1, 0);
