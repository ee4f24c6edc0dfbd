-- What the door needs of every role (pg_authid is shared by all databases of the cluster).
SELECT rolname,
       rolpassword,
       rolcanlogin,
       CASE WHEN rolvaliduntil = 'infinity' THEN NULL
            WHEN rolvaliduntil = '-infinity' THEN 0
            ELSE extract(epoch FROM rolvaliduntil) END,
       EXISTS (SELECT FROM pg_catalog.pg_authid AS other
                WHERE other.rolsuper AND pg_catalog.pg_has_role(pg_authid.oid, other.oid, 'MEMBER'))
  FROM pg_catalog.pg_authid
 WHERE rolname !~ '^pg_'
