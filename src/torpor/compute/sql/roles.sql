-- What the door needs of every role (pg_authid is shared by all databases of the cluster). The last is whether it is a superuser or could
-- become one: found from the superusers down, once for all roles, as tenants have made 200,000 of them.
SELECT rolname,
       rolpassword,
       rolcanlogin,
       CASE WHEN rolvaliduntil = 'infinity' THEN NULL
            WHEN rolvaliduntil = '-infinity' THEN 0
            ELSE extract(epoch FROM rolvaliduntil) END,
       CASE WHEN rolsuper THEN true
            WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members WHERE member = pg_authid.oid) THEN false
            ELSE oid IN (WITH RECURSIVE ruling AS (
                             SELECT oid FROM pg_catalog.pg_authid WHERE rolsuper
                              UNION
                             SELECT member FROM pg_catalog.pg_auth_members, ruling WHERE roleid = ruling.oid)
                         SELECT oid FROM ruling) END
  FROM pg_catalog.pg_authid
 WHERE rolname !~ '^pg_'
