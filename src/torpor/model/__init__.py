"""The nouns: frozen values, enums, settings, names, errors. No I/O, no clock, no tasks; every other package may import this one.

Belongs here: what two packages must agree on. Does not belong: anything that opens, reads, waits or decides with side effects.
"""
