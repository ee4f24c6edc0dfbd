-- The databases of a cluster that can be entered.
SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname LIMIT {most}
