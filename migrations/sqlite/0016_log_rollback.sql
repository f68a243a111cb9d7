-- Set while storage has a checkpoint of more leaves than this database, which then was restored from an older backup:
-- the size of that checkpoint, and the log's size when this was noticed. Nothing is appended until the leaves are back.
ALTER TABLE log_state ADD COLUMN published_beyond INTEGER;

ALTER TABLE log_state ADD COLUMN rolled_back_to INTEGER;
