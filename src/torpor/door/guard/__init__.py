"""The guard of the door: who may come in, how often, and how many at once.

Belongs here: deciding, from values and an injected time: PROXY headers, failed logins, limits, rates, who is refused most. Does not
belong: sockets, tasks, reading and answering clients (`torpor.door.login` and `torpor.door.listener` ask the `Guard`), and keeping access
lists (`torpor.model.access` has their meaning, the catalog their bytes).
"""
