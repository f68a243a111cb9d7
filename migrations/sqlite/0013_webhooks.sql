-- Webhooks: where the world is told what happened, what is to be told, and how far that has come.
-- `sealed` holds the secret that messages are signed with; `events` is a JSON list of kinds.
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    events TEXT NOT NULL,
    note TEXT,
    sealed BLOB NOT NULL,
    kek_version INTEGER NOT NULL,
    -- While set, nothing is queued for it and nothing sent.
    paused_at INTEGER,
    -- Set when it was removed; the rows go by and by.
    removed_at INTEGER,
    -- Events that were not queued because too many waited.
    dropped INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Written in the transaction of what happened. `payload` is sent as it stands.
CREATE TABLE webhook_events (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE INDEX webhook_events_by_age ON webhook_events (at);

CREATE TABLE webhook_deliveries (
    id TEXT PRIMARY KEY,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id),
    event_id TEXT NOT NULL REFERENCES webhook_events (id),
    -- waiting, delivered or given-up
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    lease_owner TEXT,
    lease_until INTEGER,
    -- Of the last attempt: the answer's status, or why there was none.
    attempted_at INTEGER,
    status INTEGER,
    error TEXT,
    created_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (state, not_before);
CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, state, id);
CREATE INDEX webhook_deliveries_by_event ON webhook_deliveries (event_id);
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (finished_at);
