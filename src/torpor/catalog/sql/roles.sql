-- name: roles_known
SELECT roles_known FROM databases WHERE id = :id;

-- name: roles
SELECT name, verifier, can_login, valid_until, rules FROM roles WHERE database_id = :id;

-- name: role
SELECT name, verifier, can_login, valid_until, rules FROM roles WHERE database_id = :id AND name = :name;

-- name: set_roles_known
UPDATE databases SET roles_known = :known WHERE id = :id;

-- name: clear_roles
DELETE FROM roles WHERE database_id = :id;

-- name: add_role
INSERT INTO roles (database_id, name, verifier, can_login, valid_until, rules) VALUES (?, ?, ?, ?, ?, ?);
