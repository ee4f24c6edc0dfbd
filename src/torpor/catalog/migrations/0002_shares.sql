-- Sizes: what each database may use of the host. NULL means the daemon's setting.

ALTER TABLE databases ADD COLUMN min_cpu REAL;              -- processors
ALTER TABLE databases ADD COLUMN max_cpu REAL;
ALTER TABLE databases ADD COLUMN min_memory_bytes INTEGER;
ALTER TABLE databases ADD COLUMN max_memory_bytes INTEGER;
ALTER TABLE databases ADD COLUMN max_connections INTEGER;   -- of clients at once
ALTER TABLE databases ADD COLUMN disk_bytes INTEGER;        -- of its volume

ALTER TABLE databases ADD COLUMN superuser INTEGER NOT NULL DEFAULT 0;  -- whether its owner is a real superuser of PostgreSQL
