"""What holds for all tests: marks by directory, which tests a user without root can run, and that a failed one leaves nothing open."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.leftovers import Leftovers
from tests.support.server import remove_orphans, templates

TESTS = Path(__file__).parent

# Hundreds of processes are started: to compile all modules in each of them again takes longer than most tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# Whoever runs the tests in the background may have them ignore SIGINT, and all that they start with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Leftovers(config))
    if not hasattr(config, "workerinput"):  # once, by whom the workers belong to
        remove_orphans()
    templates.is_on = True


def pytest_unconfigure() -> None:
    templates.remove()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is under integration/, and leave out what needs root when there is none."""
    for item in items:
        if item.path.is_relative_to(TESTS / "integration"):
            item.add_marker("integration")
    if os.geteuid() != 0:
        left_out = [item for item in items if item.get_closest_marker("root")]
        items[:] = [item for item in items if not item.get_closest_marker("root")]
        config.hook.pytest_deselected(items=left_out)
