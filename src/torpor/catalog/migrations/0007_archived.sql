-- Databases whose volume is, or is to be, in the store of the history instead of on the pool.

CREATE TABLE archived (
    database_id TEXT NOT NULL PRIMARY KEY REFERENCES databases (id) ON DELETE CASCADE,
    wrapped_key BLOB NOT NULL,                 -- opens what was stored; as that of a history
    state TEXT NOT NULL CHECK (state IN ('storing', 'archived', 'back')),
    store TEXT NOT NULL,                       -- where it is, for people
    at REAL NOT NULL,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    stored_bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Its key goes with the database, and what is in the store as soon as the store lets us.
CREATE TRIGGER archived_of_database AFTER UPDATE OF state ON databases
WHEN NEW.state = 'deleting' AND EXISTS (SELECT 1 FROM archived WHERE database_id = NEW.id)
BEGIN
    INSERT OR IGNORE INTO doomed_histories (database_id, at) VALUES (NEW.id, unixepoch('subsec'));
    DELETE FROM archived WHERE database_id = NEW.id;
END;
