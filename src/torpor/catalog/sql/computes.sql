-- name: computes
SELECT database_id, pid, start_ticks, boot_id FROM computes;

-- name: record_compute
INSERT OR REPLACE INTO computes (database_id, pid, start_ticks, boot_id) VALUES (?, ?, ?, ?);

-- name: forget_compute
DELETE FROM computes WHERE database_id = :id;
