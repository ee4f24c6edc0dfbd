"""The daemon: settings loaded, every part made and wired, started, stopped, and the data directory locked.

Belongs here: the composition root and what only it needs. Does not belong: any decision about databases, clients or sleep.
"""
