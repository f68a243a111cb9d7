CREATE TABLE caches (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    visibility TEXT NOT NULL,
    priority BIGINT NOT NULL,
    prefix TEXT NOT NULL,
    upstream_paths TEXT NOT NULL,
    undeclared_references TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    deleted_at BIGINT
);

CREATE TABLE upstreams (
    cache_id TEXT NOT NULL REFERENCES caches (id),
    position BIGINT NOT NULL,
    url TEXT NOT NULL,
    public_keys TEXT NOT NULL,
    PRIMARY KEY (cache_id, position)
);

-- One row, counted up by whatever a replica's memory must not outlive by more than a second:
-- revocation, suspension, withdrawal, deletion, another signature on a published path, a changed cache.
CREATE TABLE change_epoch (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL
);

INSERT INTO change_epoch (id, epoch) VALUES (1, 0);
