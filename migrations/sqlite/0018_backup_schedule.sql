-- What this database knows of its backups to storage, of which one replica makes each. Exactly one row; it is in no
-- backup itself.
CREATE TABLE backup_schedule (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- Which replica is at it, and until when no other one begins.
    lease_owner TEXT,
    lease_until INTEGER,
    -- Of the newest that was finished: when it was begun, its object, and its size.
    made_at INTEGER,
    name TEXT,
    size INTEGER
) STRICT;

INSERT INTO backup_schedule (id) VALUES (1);
