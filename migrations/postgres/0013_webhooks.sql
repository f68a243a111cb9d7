-- Webhooks: where the world is told what happened, what is to be told, and how far that has come.
-- `sealed` holds the secret that messages are signed with; `events` is a JSON list of kinds.
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    events TEXT NOT NULL,
    note TEXT,
    sealed BYTEA NOT NULL,
    kek_version BIGINT NOT NULL,
    -- While set, nothing is queued for it and nothing sent.
    paused_at BIGINT,
    -- Set when it was removed; the rows go by and by.
    removed_at BIGINT,
    -- Events that were not queued because too many waited.
    dropped BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Written in the transaction of what happened. `payload` is sent as it stands.
CREATE TABLE webhook_events (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    at BIGINT NOT NULL
);

CREATE INDEX webhook_events_by_age ON webhook_events (at);

CREATE TABLE webhook_deliveries (
    id TEXT PRIMARY KEY,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id),
    event_id TEXT NOT NULL REFERENCES webhook_events (id),
    -- waiting, delivered or given-up
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    not_before BIGINT NOT NULL,
    lease_owner TEXT,
    lease_until BIGINT,
    -- Of the last attempt: the answer's status, or why there was none.
    attempted_at BIGINT,
    status BIGINT,
    error TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (state, not_before);
CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, state, id);
CREATE INDEX webhook_deliveries_by_event ON webhook_deliveries (event_id);
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (finished_at);
