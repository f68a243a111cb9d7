-- The right edge of the log's tree, and the size that it is of: smaller than `size` after appends by a server
-- that does not know it, which are caught up with.
ALTER TABLE log_state ADD COLUMN frontier BYTEA;

ALTER TABLE log_state ADD COLUMN frontier_size BIGINT NOT NULL DEFAULT 0;

-- The newest checkpoint of the log, as its key signed it. Its size only grows.
CREATE TABLE log_checkpoint (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    size BIGINT NOT NULL,
    note TEXT NOT NULL,
    signed_at BIGINT NOT NULL
);
