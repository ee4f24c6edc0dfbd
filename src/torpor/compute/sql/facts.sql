-- What one database holds that an upgrade must leave as it is, a JSON array a line: database, kind, what, value. Run by psql, which is given
-- `count`: 1 to count the rows of tables, the smallest first, 16 GB of them at most.
SELECT json_build_array(current_database(), kind, what, value)
  FROM (SELECT 'relation', format('%I.%I', n.nspname, c.relname), format('%s %s', c.relkind, c.relnatts)
          FROM pg_class c
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
         UNION ALL
        SELECT 'invalid index', format('%I.%I', n.nspname, c.relname), 'invalid'
          FROM pg_index i
          JOIN pg_class c ON c.oid = i.indexrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE NOT i.indisvalid
         UNION ALL
        SELECT 'extension', extname, 'there' FROM pg_extension
         UNION ALL
        SELECT 'functions of schema', format('%I', n.nspname), count(*)::text
          FROM pg_proc p
          JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
         GROUP BY n.nspname
         UNION ALL
        SELECT 'constraints of table', conrelid::regclass::text, count(*)::text
          FROM pg_constraint
         WHERE conrelid >= 16384 AND contype <> 'n'
         GROUP BY conrelid
         UNION ALL
        SELECT 'triggers of table', tgrelid::regclass::text, string_agg(format('%s %s', tgname, tgenabled), ',' ORDER BY tgname)
          FROM pg_trigger
         WHERE NOT tgisinternal
         GROUP BY tgrelid
         UNION ALL
        SELECT 'policies of table', polrelid::regclass::text, count(*)::text FROM pg_policy GROUP BY polrelid
         UNION ALL
        SELECT 'sequence', c.oid::regclass::text, coalesce(pg_sequence_last_value(c.oid)::text, 'unused')
          FROM pg_class c
         WHERE c.relkind = 'S'
         UNION ALL
        SELECT 'schema', format('%I', nspname), nspacl::text FROM pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
         UNION ALL
        SELECT 'role', rolname, md5(format('%s %s %s %s', rolpassword, rolcanlogin, rolsuper, rolvaliduntil))
          FROM pg_authid
         WHERE rolname !~ '^pg_') AS fact (kind, what, value);

\if :count
SELECT format('SELECT json_build_array(current_database(), %L, %L, count(*)::text) FROM ONLY %I.%I', 'rows of table', what, nspname, relname)
  FROM (SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname) AS what, sum(pg_relation_size(c.oid)) OVER (ORDER BY c.relpages, c.oid) AS so_far
          FROM pg_class c
          JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence <> 't'
           AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') AS tables
 WHERE so_far <= 16::bigint << 30
\gexec
\endif
