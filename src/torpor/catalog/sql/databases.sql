-- name: databases
SELECT id, name, state, major, uid, created_at, workspace_id, freeze_after_s, page_after_s, stop_after_s,
    min_cpu, max_cpu, min_memory_bytes, max_memory_bytes, max_connections, disk_bytes, superuser,
    parent_id, branched_at, expires_at, pool, pool_size, pool_role_size, pool_queue, cache_on_write, cache_rules
FROM databases ORDER BY created_at, id;

-- name: add_database
INSERT INTO databases (id, name, state, major, uid, created_at, workspace_id, freeze_after_s, page_after_s, stop_after_s,
    min_cpu, max_cpu, min_memory_bytes, max_memory_bytes, max_connections, disk_bytes, superuser,
    parent_id, branched_at, expires_at, pool, pool_size, pool_role_size, pool_queue, cache_on_write, cache_rules)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: set_state
UPDATE databases SET state = :state WHERE id = :id;

-- name: claim
UPDATE databases
SET name = :name, workspace_id = :workspace, state = 'claiming', freeze_after_s = :freeze_after_s, page_after_s = :page_after_s, stop_after_s = :stop_after_s,
    min_cpu = :min_cpu, max_cpu = :max_cpu, min_memory_bytes = :min_memory_bytes, max_memory_bytes = :max_memory_bytes,
    max_connections = :max_connections, disk_bytes = :disk_bytes, superuser = :superuser,
    pool = :pool, pool_size = :pool_size, pool_role_size = :pool_role_size, pool_queue = :pool_queue
WHERE id = :id AND state = 'warm';

-- name: set_overrides
UPDATE databases SET freeze_after_s = :freeze_after_s, page_after_s = :page_after_s, stop_after_s = :stop_after_s WHERE id = :id;

-- name: set_size
UPDATE databases
SET min_cpu = :min_cpu, max_cpu = :max_cpu, min_memory_bytes = :min_memory_bytes, max_memory_bytes = :max_memory_bytes,
    max_connections = :max_connections, disk_bytes = :disk_bytes
WHERE id = :id;

-- name: set_pool
UPDATE databases SET pool = :pool, pool_size = :pool_size, pool_role_size = :pool_role_size, pool_queue = :pool_queue WHERE id = :id;

-- name: set_cache
UPDATE databases SET cache_on_write = :on_write, cache_rules = :rules WHERE id = :id;

-- name: set_major
UPDATE databases SET major = :major WHERE id = :id;

-- name: set_branched
UPDATE databases SET branched_at = :at WHERE id = :id;

-- name: set_expiry
UPDATE databases SET expires_at = :at WHERE id = :id;

-- name: remove_database
DELETE FROM databases WHERE id = :id;

-- name: free_uid
SELECT :base WHERE NOT EXISTS (SELECT 1 FROM databases WHERE uid = :base)
UNION ALL
SELECT * FROM (
    SELECT taken.uid + 1 FROM databases AS taken
    WHERE taken.uid >= :base AND NOT EXISTS (SELECT 1 FROM databases AS next WHERE next.uid = taken.uid + 1)
    ORDER BY taken.uid LIMIT 1
)
LIMIT 1;
