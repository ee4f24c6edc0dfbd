-- name: workspaces
SELECT id, name, created_at FROM workspaces ORDER BY created_at, id;

-- name: add_workspace
INSERT INTO workspaces (id, name, created_at) VALUES (?, ?, ?);

-- name: remove_workspace
DELETE FROM workspaces WHERE id = :id;

-- name: keys
SELECT id, workspace_id, name, scope, digest, created_at, created_by, expires_at, last_used_at FROM api_keys ORDER BY created_at, id;

-- name: add_key
INSERT INTO api_keys (id, workspace_id, name, scope, digest, created_at, created_by, expires_at, last_used_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: remove_key
DELETE FROM api_keys WHERE id = :id;

-- name: use_key
UPDATE api_keys SET last_used_at = :at WHERE id = :id;
