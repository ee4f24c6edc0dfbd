-- What every process but this one and the ones that always run does.
SELECT a.pid,
       coalesce(a.backend_type, ''),
       coalesce(a.state, ''),
       coalesce(a.wait_event_type, ''),
       coalesce(a.wait_event, ''),
       coalesce(a.usename, ''),
       coalesce(host(a.client_addr), ''),
       coalesce(a.application_name, ''),
       round(coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0), 1),
       left(coalesce(a.query, ''), 200),
       b.pid IS NOT NULL
  FROM pg_catalog.pg_stat_activity a
  LEFT JOIN pg_catalog.pg_stat_progress_basebackup b ON b.pid = a.pid
 WHERE a.pid <> pg_catalog.pg_backend_pid()
   AND a.backend_type NOT IN ('checkpointer', 'background writer', 'walwriter', 'autovacuum launcher', 'logical replication launcher')
