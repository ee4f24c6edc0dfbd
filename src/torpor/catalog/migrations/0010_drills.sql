-- Restore drills: the last few of each database.

CREATE TABLE drills (
    number INTEGER PRIMARY KEY,
    database_id TEXT NOT NULL REFERENCES databases (id) ON DELETE CASCADE,
    result TEXT NOT NULL CHECK (result IN ('passed', 'failed', 'not_possible')),
    began_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    moment TEXT NOT NULL,
    base INTEGER,
    size_bytes INTEGER NOT NULL,
    log_bytes INTEGER NOT NULL,
    tables INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    checked TEXT NOT NULL,                     -- words, with commas between
    cause TEXT,                                -- NULL for one that passed
    detail TEXT NOT NULL,
    hint TEXT NOT NULL
) STRICT;

CREATE INDEX drills_of_database ON drills (database_id, number);
