-- The cache of a database: what holds for it beside what clients say with their statements.

ALTER TABLE databases ADD COLUMN cache_on_write INTEGER NOT NULL DEFAULT 0;  -- whether writes drop what was read before
ALTER TABLE databases ADD COLUMN cache_rules TEXT NOT NULL DEFAULT '[]';     -- JSON: [[fingerprint, words, statement], …]
