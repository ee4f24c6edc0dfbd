-- name: archived
SELECT database_id, wrapped_key, state, store, at, size_bytes, stored_bytes FROM archived WHERE database_id = :id;

-- name: all_archived
SELECT database_id, wrapped_key, state, store, at, size_bytes, stored_bytes FROM archived;

-- name: add_archived
INSERT INTO archived (database_id, wrapped_key, state, store, at) VALUES (:id, :wrapped_key, 'storing', :store, :at);

-- name: set_archived
UPDATE archived SET state = 'archived', at = :at, size_bytes = :size_bytes, stored_bytes = :stored_bytes WHERE database_id = :id;

-- name: set_back
UPDATE archived SET state = 'back' WHERE database_id = :id;

-- name: forget_archived
DELETE FROM archived WHERE database_id = :id;
