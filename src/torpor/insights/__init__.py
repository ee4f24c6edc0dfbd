"""What happened to databases and why, kept so that people and metrics can ask.

Belongs here: traces of wakes, their histogram. Does not belong: what a compute does now (compute), numbers of the host (base), the
records themselves (catalog).
"""
