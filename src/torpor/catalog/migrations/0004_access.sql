-- Access lists: from which networks clients may connect to all databases, to those of a workspace, to one.

CREATE TABLE access (
    scope TEXT NOT NULL CHECK (scope IN ('global', 'workspace', 'database')), -- torpor.model.access.ListScope
    id TEXT NOT NULL,                          -- of the workspace or database; '' for the global lists
    verdict TEXT NOT NULL CHECK (verdict IN ('allow', 'deny')),
    network TEXT NOT NULL,                     -- as torpor.model.access.check_network writes it
    PRIMARY KEY (scope, id, verdict, network)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER access_of_database AFTER DELETE ON databases
BEGIN DELETE FROM access WHERE scope = 'database' AND id = OLD.id; END;

CREATE TRIGGER access_of_workspace AFTER DELETE ON workspaces
BEGIN DELETE FROM access WHERE scope = 'workspace' AND id = OLD.id; END;
