-- Major upgrades: an exchange of volumes exchanges the majors of what is in them, too.

ALTER TABLE rewinds ADD COLUMN major INTEGER;       -- that the database has once it is done; none: both stay what they are
ALTER TABLE rewinds ADD COLUMN kept_major INTEGER;  -- that the other one has then
