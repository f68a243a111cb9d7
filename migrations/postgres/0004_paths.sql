-- A NAR that this server streamed and checked. `generation` counts each time its object was made or
-- doomed, so that an upload and a deletion that overlap notice each other.
CREATE TABLE measured (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    file_hash TEXT NOT NULL,
    ext TEXT NOT NULL,
    state TEXT NOT NULL,
    generation BIGINT NOT NULL,
    compression TEXT NOT NULL,
    file_size BIGINT NOT NULL,
    nar_hash TEXT NOT NULL,
    nar_size BIGINT NOT NULL,
    -- Hashes of store paths that occur in the NAR, sorted, separated by spaces.
    found_refs TEXT NOT NULL,
    found_refs_truncated_at BIGINT,
    -- SHA-256 (Nix base-32) of the contents, where the NAR is one regular file.
    single_file_sha256 TEXT,
    single_file_executable BIGINT,
    token_id TEXT NOT NULL,
    stored_at BIGINT NOT NULL,
    -- Until when a deletion that was sent may still land.
    deleting_until BIGINT,
    UNIQUE (cache_id, file_hash, ext)
);

CREATE INDEX measured_by_age ON measured (state, stored_at);
CREATE INDEX measured_by_nar ON measured (cache_id, nar_hash);

-- One row per (cache, 32-character hash); `claim_id` is the claim that stands, or stood last.
CREATE TABLE paths (
    id TEXT PRIMARY KEY,
    cache_id TEXT NOT NULL REFERENCES caches (id),
    hash TEXT NOT NULL,
    state TEXT NOT NULL,
    claim_id TEXT NOT NULL,
    published_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    UNIQUE (cache_id, hash)
);

CREATE INDEX paths_by_change ON paths (cache_id, state, changed_at);

-- The tuple that Nix signs, and the file that carries it. Never deleted.
CREATE TABLE claims (
    id TEXT PRIMARY KEY,
    path_id TEXT NOT NULL REFERENCES paths (id),
    claim_sha256 TEXT NOT NULL,
    store_path TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    nar_size BIGINT NOT NULL,
    -- Base names, sorted, separated by spaces.
    refs TEXT NOT NULL,
    file_hash TEXT NOT NULL,
    ext TEXT NOT NULL,
    compression TEXT NOT NULL,
    file_size BIGINT NOT NULL,
    deriver TEXT,
    ca TEXT,
    -- A claimed content address that is of no kind narvault recomputes, and so is not served.
    ca_dropped TEXT,
    -- Found in the NAR, published here, and not claimed; hashes separated by spaces.
    undeclared_refs TEXT NOT NULL,
    -- Claimed, and not found in the NAR; hashes separated by spaces.
    unfound_refs TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (path_id, claim_sha256)
);

CREATE INDEX claims_by_file ON claims (file_hash, ext);
CREATE INDEX claims_by_nar ON claims (nar_hash);

CREATE TABLE path_refs (
    claim_id TEXT NOT NULL REFERENCES claims (id),
    ref_hash TEXT NOT NULL,
    PRIMARY KEY (claim_id, ref_hash)
);

CREATE INDEX path_refs_by_ref ON path_refs (ref_hash);

-- `leaf` is the log index of a signature made here; null on one made elsewhere and kept.
CREATE TABLE signatures (
    claim_id TEXT NOT NULL REFERENCES claims (id),
    key_name TEXT NOT NULL,
    sig BYTEA NOT NULL,
    leaf BIGINT,
    PRIMARY KEY (claim_id, key_name)
);

-- One row per act. `source_kind`: contributor, contributor-key or upstream; `source_id`: the
-- contributor's id, or the upstream key's name.
CREATE TABLE evidence (
    id TEXT PRIMARY KEY,
    claim_id TEXT NOT NULL REFERENCES claims (id),
    source_kind TEXT NOT NULL,
    source_id TEXT NOT NULL,
    token_id TEXT,
    at BIGINT NOT NULL,
    void_by TEXT
);

CREATE INDEX evidence_by_claim ON evidence (claim_id);
CREATE INDEX evidence_by_source ON evidence (source_kind, source_id, at);
CREATE INDEX evidence_by_token ON evidence (token_id);

-- Another claim for a published path: refused, and no evidence.
CREATE TABLE conflicts (
    id TEXT PRIMARY KEY,
    path_id TEXT NOT NULL REFERENCES paths (id),
    standing_claim_id TEXT NOT NULL REFERENCES claims (id),
    claim_sha256 TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    refs TEXT NOT NULL,
    contributor_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    UNIQUE (path_id, claim_sha256, token_id)
);
