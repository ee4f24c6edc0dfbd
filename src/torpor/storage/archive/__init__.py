"""The past of databases, kept outside of the pool: base copies and the write-ahead log, compressed and encrypted, in a directory or at an
S3-compatible store.

Belongs here: object stores, keys, the format of what is stored, what must be kept and what can be restored. Does not belong: when a copy is
made, how bytes of a running PostgreSQL are read, and how a restored cluster is started.

    Archive      one for the daemon: store, master key, threads                (archive.py)
    Repository   the bases and the log of one database                         (repository.py)
    Vault        seals and opens what a repository stores                      (vault.py)
    Store        puts, gets, lists and deletes objects, with patience          (store.py)
    Bucket       one attempt at that: a directory, S3                          (bucket.py, directory.py, s3.py)
"""
