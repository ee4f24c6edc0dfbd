-- The tables of a database that have rows of their own, quoted, and whether each has an index with an entry for every row.
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
       EXISTS (
           SELECT 1
             FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
             JOIN pg_catalog.pg_am a ON a.oid = x.relam
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND a.amname = 'btree'
       )
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
 ORDER BY c.oid
 LIMIT {most}
