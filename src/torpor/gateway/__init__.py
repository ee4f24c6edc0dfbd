"""What stands between many short-lived clients and their databases: the pool, and SQL over HTTP.

Belongs here: clients of the door that speak for other clients, each in processes of its own, with the part of them that runs in the
daemon. Does not belong: authentication, routing, limits of connections and wakes (the door's), or what a database is (control's).
"""
