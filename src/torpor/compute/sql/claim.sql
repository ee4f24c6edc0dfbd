-- Turns a warm cluster into a database of its user, whose name is that of the inner database and of the owner role. Sent as one
-- query, so one transaction.
ALTER DATABASE warm RENAME TO {name};
ALTER ROLE warm RENAME TO {name};
ALTER ROLE {name} {power} PASSWORD {verifier}
