-- Takes the passwords of all roles but two away: with those of its parent nobody may log in to a branch.
UPDATE pg_catalog.pg_authid SET rolpassword = NULL WHERE rolpassword IS NOT NULL AND rolname NOT IN ({owner}, {service})
