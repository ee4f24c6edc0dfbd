-- By whose tokens one can log in to a database, as which of its roles; and which roles are superusers or can become one, which no token
-- makes anybody. Roles are asked for once more, as that isn't known of those that are kept.

CREATE TABLE token_rules (
    database_id TEXT NOT NULL PRIMARY KEY REFERENCES databases (id) ON DELETE CASCADE,
    issuer TEXT NOT NULL,
    audience TEXT,              -- NULL: whatever a token says
    role_claim TEXT,            -- NULL: there is one role
    roles TEXT NOT NULL,        -- JSON
    jwks_url TEXT,              -- where the keys are fetched
    jwks TEXT,                  -- or the keys themselves
    version TEXT NOT NULL       -- tells these rules from others
) STRICT, WITHOUT ROWID;

ALTER TABLE roles ADD COLUMN rules INTEGER NOT NULL DEFAULT 0;
DELETE FROM roles;
UPDATE databases SET roles_known = 0;
