"""What a failed test leaves open must not fail another one: its connections are closed, and what it forgot isn't held against others.

A test that succeeds closes what it opened; what it forgot is an error, as everywhere. One that failed couldn't: its connections would
keep databases of a shared server awake, and Python would complain about them (ResourceWarning) in whichever test comes next.
"""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Generator
from typing import Any

import psycopg
import pytest

_opened: "weakref.WeakSet[psycopg.Connection[Any]]" = weakref.WeakSet()


class Leftovers:
    """A pytest plugin."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tolerant = False
        make = psycopg.Connection.__init__

        def init(connection: "psycopg.Connection[Any]", *arguments: Any, **more: Any) -> None:
            make(connection, *arguments, **more)
            _opened.add(connection)

        psycopg.Connection.__init__ = init  # type: ignore[method-assign, assignment]

    def pytest_collection_finish(self) -> None:
        """Modules and thousands of tests stay until the end: looking through them after each test would take minutes in all."""
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Around the test itself, without fixtures: those clean up after themselves."""
        before = set(_opened)
        try:
            result = yield
            if asyncio.iscoroutinefunction(getattr(item, "function", None)):
                gc.collect()  # what a test on a loop has forgotten is found in that test, not in whichever comes next
            return result
        except pytest.skip.Exception:
            raise
        except BaseException:
            self._be_tolerant()
            for connection in set(_opened) - before:
                with contextlib.suppress(Exception):
                    connection.close()
            raise

    def _be_tolerant(self) -> None:
        if not self._tolerant:
            self._tolerant = True
            for warning in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning", "pytest.PytestUnhandledThreadExceptionWarning"):
                self._config.addinivalue_line("filterwarnings", f"ignore::{warning}")
