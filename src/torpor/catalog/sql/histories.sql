-- name: history
SELECT database_id, wrapped_key, run, timeline, segment_bytes, shipped_lsn, shipped_at, tail, end_lsn, base_at, base_lsn, trouble,
    keep_s, keep_bases
FROM histories WHERE database_id = :id;

-- name: history_ids
SELECT database_id FROM histories;

-- name: histories_behind
SELECT database_id FROM histories WHERE end_lsn IS NOT NULL;

-- name: add_history
INSERT INTO histories (database_id, wrapped_key) VALUES (:id, :wrapped_key);

-- name: set_shipped
UPDATE histories
SET run = :run, timeline = :timeline, segment_bytes = :segment_bytes, shipped_lsn = :lsn, shipped_at = :at, tail = :tail,
    end_lsn = :end_lsn, base_at = :base_at, base_lsn = :base_lsn, trouble = :trouble
WHERE database_id = :id;

-- name: set_retention
UPDATE histories SET keep_s = :keep_s, keep_bases = :keep_bases WHERE database_id = :id;

-- name: doomed_histories
SELECT database_id, at FROM doomed_histories ORDER BY at;

-- name: doom_history
INSERT OR IGNORE INTO doomed_histories (database_id, at) VALUES (:id, :at);

-- name: forget_doomed_history
DELETE FROM doomed_histories WHERE database_id = :id;

-- name: set_history_expiry
UPDATE histories SET expire_at = :at WHERE database_id = :id;

-- name: histories_to_expire
SELECT database_id FROM histories WHERE expire_at <= :now ORDER BY expire_at LIMIT :limit;
