"""The fuzzer of the handshake for as long as one likes, with seeds that nobody has tried: part of `make soak`.

One thread; memory and descriptors are looked at after every seed. A fault ends it, with the bytes that caused it.
"""

import argparse
import os
import secrets
import sys
import time
from collections import Counter

from tests.support.fuzz import Mutator, conduct

_EACH = 100_000
_GROWTH_BYTES = 16 << 20


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run; 1 when something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="begin with this one instead of chance")
    options, _ = parser.parse_known_args()
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    end, outcomes, before = time.monotonic() + options.minutes * 60, Counter[str](), 0
    print(f"fuzzing the handshake from seed {seed}", flush=True)
    while time.monotonic() < end:
        mutator = Mutator(seed)
        for number in range(_EACH):
            data, is_balanced = mutator.next()
            try:
                outcomes[conduct(data, is_balanced, number)] += 1
            except Exception as error:
                print(f"seed {seed}, number {number}, balanced {is_balanced}: {data!r}: {error!r}", file=sys.stderr)
                return 1
        before = before or rss_bytes()
        if rss_bytes() - before > _GROWTH_BYTES:
            print(f"memory grew by {rss_bytes() - before} bytes", file=sys.stderr)
            return 1
        seed += 1
    print(f"{outcomes.total()} handshakes: {', '.join(f'{count} {name}' for name, count in outcomes.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
