"""Runs the benchmarks one after the other, each in a process of its own: all of them, or those named on the command line."""

import subprocess
import sys
from pathlib import Path

HELPERS = {"__init__", "__main__", "branch_soak", "escapes", "fuzz", "harness", "power_cut", "rig", "soak"}


def main() -> int:
    """Returns how many could not run."""
    every = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    chosen = sys.argv[1:] or every
    if unknown := sorted(set(chosen) - set(every)):
        print(f"bench: there is no {', '.join(unknown)}; there are: {', '.join(every)}", file=sys.stderr)
        return 2
    failed = [name for name in chosen if run(name)]
    if failed:
        print(f"bench: could not run: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def run(name: str) -> int:
    """Run one in a process of its own. Ctrl-C reaches it, too; it gets the time to take its mounts and processes down."""
    print(f"bench: {name}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, "-m", f"bench.{name}"])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit(130) from None


if __name__ == "__main__":
    sys.exit(main())
