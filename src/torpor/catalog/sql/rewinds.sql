-- name: begin_rewind
INSERT OR REPLACE INTO rewinds (database_id, kept_id, is_made, major, kept_major) VALUES (:id, :kept_id, :is_made, :major, :kept_major);

-- name: finish_rewind
UPDATE rewinds SET is_done = 1 WHERE database_id = :id;

-- name: forget_rewind
DELETE FROM rewinds WHERE database_id = :id;

-- name: rewind
SELECT kept_id FROM rewinds WHERE database_id = :id AND is_done;

-- name: unfinished_rewinds
SELECT database_id, kept_id, is_made, major, kept_major FROM rewinds WHERE NOT is_done;
