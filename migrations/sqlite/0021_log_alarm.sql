-- Set once a publisher found that the log contradicts what was published of it: what, and when. Nothing is signed until an
-- operator has cleared it.
ALTER TABLE log_state ADD COLUMN forked_what TEXT;

ALTER TABLE log_state ADD COLUMN forked_at INTEGER;
