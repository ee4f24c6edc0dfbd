"""What a hostile tenant brings along: a C library that runs inside of a compute (attacks.c), and the Python side of it (kit.py)."""
