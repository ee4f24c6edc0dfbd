"""Helpers that several tests share.

Belongs here: twins of ports, dialogues, builders. Does not belong: fixtures, which are in the conftest.py next to their tests.
"""
