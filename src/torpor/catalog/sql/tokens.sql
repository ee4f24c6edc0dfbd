-- name: token_rules
SELECT database_id, issuer, audience, role_claim, roles, jwks_url, jwks, version FROM token_rules;

-- name: clear_token_rules
DELETE FROM token_rules WHERE database_id = :id;

-- name: add_token_rules
INSERT INTO token_rules (database_id, issuer, audience, role_claim, roles, jwks_url, jwks, version)
SELECT id, :issuer, :audience, :role_claim, :roles, :jwks_url, :jwks, :version FROM databases WHERE id = :id;
