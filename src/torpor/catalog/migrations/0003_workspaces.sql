-- Workspaces, their API keys, and the audit log.

CREATE TABLE workspaces (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO workspaces (id, name, created_at) VALUES ('wdefaultaaaaa', 'default', unixepoch('subsec'));

ALTER TABLE databases ADD COLUMN workspace_id TEXT REFERENCES workspaces (id);  -- NULL while it waits in the warm pool
UPDATE databases SET workspace_id = 'wdefaultaaaaa' WHERE name IS NOT NULL;
CREATE INDEX databases_by_workspace ON databases (workspace_id);

CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    scope TEXT NOT NULL,                       -- torpor.model.workspace.AccessScope
    digest BLOB NOT NULL,                      -- SHA-256 of the secret
    created_at REAL NOT NULL,
    created_by TEXT NOT NULL,
    expires_at REAL,
    last_used_at REAL
) STRICT, WITHOUT ROWID;

CREATE INDEX api_keys_by_workspace ON api_keys (workspace_id);

-- Append-only: rows can't be changed, the next row has the next number, and only those that the anchor covers may go (to a file).
CREATE TABLE audit (
    number INTEGER NOT NULL PRIMARY KEY,
    at REAL NOT NULL,
    actor TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    workspace_id TEXT,                         -- no reference: it outlives the workspace
    result TEXT NOT NULL,                      -- torpor.model.audit.AuditResult
    detail TEXT NOT NULL,
    begun INTEGER,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;

CREATE INDEX audit_by_workspace ON audit (workspace_id, number);
CREATE INDEX audit_by_begun ON audit (begun) WHERE begun IS NOT NULL;
CREATE INDEX audit_unfinished ON audit (number) WHERE result = 'begun';

CREATE TABLE audit_anchor (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    number INTEGER NOT NULL,                   -- of the newest record that was moved to a file
    hash TEXT NOT NULL
) STRICT;

INSERT INTO audit_anchor (only, number, hash) VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TRIGGER audit_in_order BEFORE INSERT ON audit
WHEN NEW.number IS NOT coalesce((SELECT max(number) FROM audit), (SELECT number FROM audit_anchor)) + 1
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_kept BEFORE DELETE ON audit
WHEN OLD.number > (SELECT number FROM audit_anchor)
BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;

CREATE TRIGGER audit_anchor_follows BEFORE UPDATE ON audit_anchor
WHEN NEW.number < OLD.number OR NOT EXISTS (SELECT 1 FROM audit WHERE number = NEW.number AND hash = NEW.hash)
BEGIN SELECT raise(ABORT, 'the anchor of the audit log only moves to one of its records'); END;

CREATE TRIGGER audit_anchor_one BEFORE INSERT ON audit_anchor
BEGIN SELECT raise(ABORT, 'the audit log has one anchor'); END;

CREATE TRIGGER audit_anchor_kept BEFORE DELETE ON audit_anchor
BEGIN SELECT raise(ABORT, 'the anchor of the audit log stays'); END;
