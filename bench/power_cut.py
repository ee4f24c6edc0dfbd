"""`make soak`: power cuts under load, again and again, each checked (tests/support/powercut.py says what is modelled)."""

import argparse
import signal
import sys
import time

from tests.support.pools import lacks_encryption
from tests.support.powercut import cut_power

_CUTS = 4


def main() -> int:
    """0 when nothing was lost or torn."""
    parser = argparse.ArgumentParser(prog="bench.power_cut", description="Power cuts under load, with a checker for lost commits.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    deadline, rounds, commits = time.monotonic() + asked.minutes * 60, 0, 0
    while not rounds or time.monotonic() < deadline:
        encrypted = rounds % 2 == 1 and not lacks_encryption()
        kind = "an encrypted pool" if encrypted else "a pool"
        print(f"power cut: {_CUTS} cuts of 3 databases on {kind}, --seed {asked.seed + rounds}", flush=True)
        try:
            commits += cut_power(_CUTS, 3, asked.seed + rounds, encrypted)
        except AssertionError as error:
            print(f"power cut: FAILED: {error}", file=sys.stderr)
            return 1
        rounds += 1
    print(f"power cut: {rounds * _CUTS} cuts, {commits} acknowledged commits, nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
