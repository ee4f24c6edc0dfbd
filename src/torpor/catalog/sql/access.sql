-- name: access
SELECT scope, id, verdict, network FROM access;

-- name: clear_access
DELETE FROM access WHERE scope = :scope AND id = :id;

-- name: add_access
INSERT INTO access (scope, id, verdict, network) VALUES (?, ?, ?, ?);
