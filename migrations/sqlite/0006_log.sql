-- The row that every append locks last. `size` is the next index; there are no gaps.
CREATE TABLE log_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL
) STRICT;

INSERT INTO log_state (id, size) VALUES (1, 0);

CREATE TABLE log_leaves (
    idx INTEGER PRIMARY KEY,
    event TEXT NOT NULL,
    leaf TEXT NOT NULL,
    -- What the leaf is about, for the way back from a path to its leaves.
    path_id TEXT
) STRICT;

CREATE INDEX log_leaves_by_path ON log_leaves (path_id);

-- What the salted hashes of a leaf stand for; may be erased without breaking the tree.
CREATE TABLE log_openings (
    idx INTEGER NOT NULL REFERENCES log_leaves (idx),
    part TEXT NOT NULL,
    salt BLOB NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (idx, part)
) STRICT;

-- Lists of references that did not fit into a leaf, by the digest that stands there instead. Never deleted.
CREATE TABLE log_references (
    digest TEXT PRIMARY KEY,
    refs TEXT NOT NULL
) STRICT;
