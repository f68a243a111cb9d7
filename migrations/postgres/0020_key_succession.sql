-- Which key of a cache comes after which: each row a signed note (`narvault/key-succession/v1`), as it is published. Rows
-- are never changed; a number is never given twice.
CREATE TABLE key_successions (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    -- 1 for the first of a cache, without gaps.
    seq BIGINT NOT NULL,
    note TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (cache_id, seq)
);

-- Whose word counts where a cache's key is in other hands: each row a signed note (`narvault/key-roots/v1`).
CREATE TABLE key_roots (
    id TEXT PRIMARY KEY,
    -- A cache's id; `server` for all caches that have none of their own.
    scope TEXT NOT NULL,
    -- 1 for the first of a scope, without gaps.
    version BIGINT NOT NULL,
    note TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (scope, version)
);
