"""SQL over HTTP: a process of its own, which is a client of the door like any other.

It knows no role and checks no password: each request's credentials go to the door in a login (SCRAM), together with the true address of
the client, so that routing, access lists, limits, penalties and wakes are the door's alone. What is pure: `credentials`, `queries`,
`results`, `values`, `failures`, `proxyheader`, `multipart`. What runs in the daemon: `service`. All else runs in the process (`__main__`).
"""
