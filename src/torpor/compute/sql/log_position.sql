-- How far the write-ahead log is flushed, on which timeline, how large its files are, and how the slot stands that keeps it for Torpor.
SELECT pg_catalog.pg_current_wal_flush_lsn(),
       left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8),
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')),
       slot.restart_lsn,
       coalesce(slot.wal_status, 'none')
  FROM (SELECT) AS one
  LEFT JOIN pg_catalog.pg_replication_slots slot ON slot.slot_name = '{slot}' AND slot.slot_type = 'physical'
