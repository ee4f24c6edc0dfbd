"""What isolates a compute from the host and from the others: its root image, its namespaces, its limits.

Does not belong: when a compute starts or sleeps, and what PostgreSQL is told.
"""
