CREATE TABLE contributors (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    group_name TEXT,
    suspended_at BIGINT,
    created_at BIGINT NOT NULL
);

-- Public keys whose `Sig:` lines count as a contributor's evidence. A removed key stays as history.
CREATE TABLE contributor_keys (
    id TEXT PRIMARY KEY,
    contributor_id TEXT NOT NULL REFERENCES contributors (id),
    name TEXT NOT NULL UNIQUE,
    public_key BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT
);

CREATE INDEX contributor_keys_by_contributor ON contributor_keys (contributor_id);

-- The text of a token is nowhere: a row and a signature make it valid together.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    contributor_id TEXT NOT NULL REFERENCES contributors (id),
    scopes TEXT NOT NULL,
    issued_by TEXT REFERENCES tokens (id),
    key_id TEXT NOT NULL REFERENCES signing_keys (id),
    note TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- No renewal of this token, or of its renewals, outlives this time; null: only the lifetime rules bound it.
    renewable_until BIGINT,
    revoked_at BIGINT,
    revoke_reason TEXT
);

CREATE INDEX tokens_by_contributor ON tokens (contributor_id);
CREATE INDEX tokens_by_issuer ON tokens (issued_by);

-- Apart from `tokens`, so that noting a use never touches a row that a revocation writes.
CREATE TABLE token_uses (
    token_id TEXT PRIMARY KEY REFERENCES tokens (id),
    last_used_at BIGINT NOT NULL
);

-- One-time secrets that make an administrator. Only their hash is kept.
CREATE TABLE admin_claims (
    id TEXT PRIMARY KEY,
    secret_sha256 BYTEA NOT NULL UNIQUE,
    contributor_name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    spent_at BIGINT
);
