-- Drops the slot that keeps the log for Torpor, if there is one.
SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}' AND NOT active
