-- Databases, and what is remembered of each. Times are seconds since the epoch.

CREATE TABLE databases (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT UNIQUE,                          -- NULL while it waits in the warm pool
    state TEXT NOT NULL,                       -- torpor.model.database.DatabaseState
    major INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    created_at REAL NOT NULL,
    freeze_after_s ANY CHECK (typeof(freeze_after_s) IN ('null', 'integer', 'real') OR freeze_after_s = 'never'),
    page_after_s ANY CHECK (typeof(page_after_s) IN ('null', 'integer', 'real') OR page_after_s = 'never'),
    stop_after_s ANY CHECK (typeof(stop_after_s) IN ('null', 'integer', 'real') OR stop_after_s = 'never'),
    roles_known INTEGER NOT NULL DEFAULT 0,    -- whether `roles` holds all roles of this database
    wakes INTEGER NOT NULL DEFAULT 0,          -- how often it was ever woken; the newest row of `wakes` has this number
    received_bytes INTEGER NOT NULL DEFAULT 0, -- from clients
    sent_bytes INTEGER NOT NULL DEFAULT 0      -- to clients
) STRICT, WITHOUT ROWID;

CREATE INDEX databases_by_uid ON databases (uid);

CREATE TABLE roles (
    database_id TEXT NOT NULL REFERENCES databases (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    verifier TEXT,
    can_login INTEGER NOT NULL,
    valid_until REAL,
    PRIMARY KEY (database_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE computes (
    database_id TEXT NOT NULL PRIMARY KEY REFERENCES databases (id) ON DELETE CASCADE,
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    boot_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE wakes (
    database_id TEXT NOT NULL REFERENCES databases (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,                   -- 1 for the first wake of the database
    at REAL NOT NULL,
    reason TEXT NOT NULL,
    tier TEXT NOT NULL,
    detail TEXT NOT NULL,
    elapsed_ms REAL NOT NULL,
    steps TEXT NOT NULL,                       -- JSON: [[name, elapsed_ms], …]
    PRIMARY KEY (database_id, number)
) STRICT, WITHOUT ROWID;
