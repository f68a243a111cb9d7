-- Objects that storage does not hold yet as the rows say. A row names an object, never a text.
CREATE TABLE outbox (
    object TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    cache_id TEXT,
    -- What the object is rendered from: a path's hash, a measured row's id, an auxiliary row's id.
    subject TEXT NOT NULL,
    generation BIGINT NOT NULL,
    not_before BIGINT NOT NULL,
    lease_owner TEXT,
    lease_until BIGINT,
    -- A lease ended by expiry: until then its holder's write may still land, so do it once more after.
    redo_at BIGINT,
    attempts BIGINT NOT NULL,
    enqueued_at BIGINT NOT NULL
);

CREATE INDEX outbox_due ON outbox (not_before);
CREATE INDEX outbox_by_subject ON outbox (subject);
