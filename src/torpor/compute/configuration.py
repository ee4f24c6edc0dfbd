"""The configuration that all computes of one major share: tuned for small, many and short-lived. Pure text.

The files lie outside of every volume, and the lines that isolation rests on are also given on the command line, where no
`ALTER SYSTEM` can change them.
"""

from torpor.model.names import SERVICE_ROLE

PORT = 5432
ISOLATION = {
    # The library replaces the one socket that PostgreSQL makes (in its own volume) by Torpor's listener.
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "logging_collector": "off",
    "port": str(PORT),  # names the socket, and its lock file
    "full_page_writes": "on",  # branches are copied while pages are being written
}

_RESERVED = 3


def postgresql_conf(major: int, max_connections: int, memory_bytes: int = 1 << 30) -> str:
    """The text of postgresql.conf."""
    lines = {
        **ISOLATION,
        # Torpor's own session gets in when tenants have used up theirs, and takes none of them.
        "max_connections": str(max_connections + _RESERVED + 1),
        "superuser_reserved_connections": str(_RESERVED),
        "effective_cache_size": f"{memory_bytes * 3 // 4 >> 20}MB",  # the page cache is the cache, and counts as the database's memory
        "shared_buffers": "16MB",  # what was touched must be paged out; the page cache does the rest
        "min_dynamic_shared_memory": "0",
        "huge_pages": "off",
        "max_files_per_process": "256",  # the postmaster tries them all at every start: 1,000 take 1 ms, and memory in each process
        "jit": "off",  # the binaries have no LLVM
        "wal_level": "logical",  # every kind of replication works without a restart
        "min_wal_size": "2MB",  # two segments of 1 MB: the smallest volume
        "max_wal_size": "256MB",
        "max_slot_wal_keep_size": "1GB",  # what a slot keeps for a reader that doesn't come, Torpor itself among them
        "checkpoint_timeout": "15min",
        "wal_compression": "lz4",
        "autovacuum_max_workers": "2",
        "tcp_keepalives_idle": "120",  # a client that vanished is noticed, also while frozen: the kernel asks
        "tcp_keepalives_interval": "30",
        "tcp_keepalives_count": "4",
        "log_destination": "stderr",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "timezone": "UTC",
        "datestyle": "iso, mdy",
        "default_text_search_config": "pg_catalog.english",
        "password_encryption": "scram-sha-256",
    }
    if major >= 18:
        lines["io_method"] = "sync"  # no I/O workers: three processes fewer in each compute
    quoted = ((name, value.replace("'", "''")) for name, value in lines.items())
    return "# Written by Torpor at every start; changes are lost. ALTER DATABASE … SET is yours.\n" + "".join(
        f"{name} = '{value}'\n" for name, value in quoted
    )


def pg_hba_conf() -> str:
    """The text of pg_hba.conf: the door has checked who it is; Torpor's own sessions come over the Unix socket, clients never do."""
    return (
        "# Written by Torpor at every start. The door checks passwords; this listener takes clients from the door only.\n"
        f"local all {SERVICE_ROLE} trust\n"
        f"host all {SERVICE_ROLE} all reject\n"
        f"host replication {SERVICE_ROLE} all reject\n"
        "host all all all trust\n"
        "host replication all all trust\n"
    )
