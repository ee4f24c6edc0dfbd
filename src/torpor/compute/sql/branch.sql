-- A branch subscribes to nothing: it would take its parent's changes from the publisher.
UPDATE pg_catalog.pg_subscription SET subenabled = false WHERE subenabled
