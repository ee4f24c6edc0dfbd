-- The pool of a database. NULL means the daemon's setting.

ALTER TABLE databases ADD COLUMN pool TEXT CHECK (pool IN ('off', 'auto'));  -- who is pooled that doesn't say so himself
ALTER TABLE databases ADD COLUMN pool_size INTEGER;       -- connections to PostgreSQL that pooled clients share
ALTER TABLE databases ADD COLUMN pool_role_size INTEGER;  -- of these, for one role; 0: as many
ALTER TABLE databases ADD COLUMN pool_queue INTEGER;      -- clients that may wait for one
