CREATE ROLE warm LOGIN CREATEDB CREATEROLE REPLICATION INHERIT NOSUPERUSER;
CREATE DATABASE warm OWNER warm;
GRANT pg_monitor, pg_signal_backend, pg_read_all_settings, pg_read_all_stats TO warm WITH ADMIN OPTION;
GRANT SET ON PARAMETER torpor.http_origins TO warm WITH GRANT OPTION;
