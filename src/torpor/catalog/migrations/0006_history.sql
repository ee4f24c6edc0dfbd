-- The past of databases, which is kept elsewhere: the keys that open it, and how far the log has got there.

CREATE TABLE histories (
    database_id TEXT NOT NULL PRIMARY KEY REFERENCES databases (id) ON DELETE CASCADE,
    wrapped_key BLOB NOT NULL,                 -- opened by the master key; without it the history is noise, wherever copies of it are
    run INTEGER NOT NULL DEFAULT 0,            -- counts unbroken stretches of log
    timeline INTEGER,                          -- of the present run, as are the others below; NULL before its first base
    segment_bytes INTEGER,
    shipped_lsn INTEGER,                       -- all of the log up to here is in the store
    shipped_at REAL,                           -- all that was committed up to here is
    tail BLOB,                                 -- SHA-256 of the last page of it, up to shipped_lsn
    end_lsn INTEGER,                           -- where the log ended as the database fell asleep, if that isn't in the store yet
    base_at REAL,                              -- when the newest base was taken
    base_lsn INTEGER,
    trouble TEXT NOT NULL DEFAULT '',          -- why the present run doesn't go on from the one before
    keep_s REAL,                               -- its own retention; NULL means the daemon's setting
    keep_bases INTEGER,
    expire_at REAL                             -- when something of it needn't be kept any more
) STRICT, WITHOUT ROWID;

CREATE INDEX histories_behind ON histories (database_id) WHERE end_lsn IS NOT NULL;

CREATE INDEX histories_by_expiry ON histories (expire_at) WHERE expire_at IS NOT NULL;

-- Histories of which nothing may stay: their keys are gone, their objects go as soon as the store lets us.
CREATE TABLE doomed_histories (
    database_id TEXT NOT NULL PRIMARY KEY,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER history_of_database AFTER UPDATE OF state ON databases
WHEN NEW.state = 'deleting' AND EXISTS (SELECT 1 FROM histories WHERE database_id = NEW.id)
BEGIN
    INSERT OR IGNORE INTO doomed_histories (database_id, at) VALUES (NEW.id, unixepoch('subsec'));
    DELETE FROM histories WHERE database_id = NEW.id;
END;
