"""The suite of escape attempts, round after round, with more of everything: part of `make soak`. What holds once may not hold again.

One process for each round, on a Torpor of its own; the first round that fails ends it, with what pytest says.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_MORE = {"TORPOR_ESCAPE_ROLES": "1000000"}


def main() -> int:
    """Run at least one round; 1 when something got out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="begin no further round after so long")
    options, _ = parser.parse_known_args()
    attempts = sorted(str(path) for path in (_ROOT / "tests/integration").glob("test_escape_*.py"))
    end, rounds = time.monotonic() + options.minutes * 60, 0
    while not rounds or time.monotonic() < end:
        rounds += 1
        print(f"escape attempts: round {rounds}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *attempts]
        if code := subprocess.run(command, cwd=_ROOT, env={**os.environ, **_MORE}, check=False).returncode:
            return code
    print(f"escape attempts: {rounds} rounds, nothing got out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
