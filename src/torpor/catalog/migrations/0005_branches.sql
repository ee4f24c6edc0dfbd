-- Branches: which database each was made from, as of when, and when it is removed.

ALTER TABLE databases ADD COLUMN parent_id TEXT;            -- no reference: a branch outlives its parent
ALTER TABLE databases ADD COLUMN branched_at REAL;
ALTER TABLE databases ADD COLUMN expires_at REAL;
