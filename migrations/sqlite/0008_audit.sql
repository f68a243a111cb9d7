-- Acts and denials. Ids, names, addresses; never a token, claim or passphrase in any form.
CREATE TABLE audit (
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    outcome TEXT NOT NULL,
    contributor_id TEXT,
    token_id TEXT,
    subject TEXT NOT NULL,
    address TEXT,
    client TEXT,
    request_id TEXT,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_contributor ON audit (contributor_id, id);
CREATE INDEX audit_by_token ON audit (token_id, id);
CREATE INDEX audit_by_action ON audit (action, id);
