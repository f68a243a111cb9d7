-- Times are unix milliseconds; ids are UUIDv7 text; flags are nullable times.

-- Exactly one row: which cluster this database is, and whether it was sealed by hand.
CREATE TABLE cluster (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT NOT NULL,
    seal_epoch BIGINT NOT NULL,
    sealed_by_hand_at BIGINT,
    created_at BIGINT NOT NULL
);

CREATE TABLE vault_slots (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    wrapped_root BYTEA NOT NULL,
    kcv BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT
);

CREATE TABLE vault_keks (
    version BIGINT PRIMARY KEY,
    wrapped BYTEA NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Every sealed Ed25519 seed: keys of caches, the key that signs tokens, the key of the log.
-- A name is never given twice.
CREATE TABLE signing_keys (
    id TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    cache_id TEXT,
    name TEXT NOT NULL UNIQUE,
    version BIGINT NOT NULL,
    public_key BYTEA NOT NULL,
    sealed BYTEA NOT NULL,
    kek_version BIGINT NOT NULL,
    state TEXT NOT NULL,
    imported_at BIGINT,
    created_at BIGINT NOT NULL
);

CREATE INDEX signing_keys_by_cache ON signing_keys (cache_id, state);
