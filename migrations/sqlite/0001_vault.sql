-- Times are unix milliseconds; ids are UUIDv7 text; flags are nullable times.

-- Exactly one row: which cluster this database is, and whether it was sealed by hand.
CREATE TABLE cluster (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cluster_id TEXT NOT NULL,
    seal_epoch INTEGER NOT NULL,
    sealed_by_hand_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE vault_slots (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    wrapped_root BLOB NOT NULL,
    kcv BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    removed_at INTEGER
) STRICT;

CREATE TABLE vault_keks (
    version INTEGER PRIMARY KEY,
    wrapped BLOB NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Every sealed Ed25519 seed: keys of caches, the key that signs tokens, the key of the log.
-- A name is never given twice.
CREATE TABLE signing_keys (
    id TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    cache_id TEXT,
    name TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    sealed BLOB NOT NULL,
    kek_version INTEGER NOT NULL,
    state TEXT NOT NULL,
    imported_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX signing_keys_by_cache ON signing_keys (cache_id, state);
