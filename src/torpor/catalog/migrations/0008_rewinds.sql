-- Restores in place: with which database each has exchanged its volume last, or is about to.

CREATE TABLE rewinds (
    database_id TEXT NOT NULL PRIMARY KEY REFERENCES databases (id) ON DELETE CASCADE,
    kept_id TEXT NOT NULL REFERENCES databases (id) ON DELETE CASCADE, -- has what the first one was
    is_made INTEGER NOT NULL,                  -- whether it was made for this exchange, and goes if that doesn't happen
    is_done INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
