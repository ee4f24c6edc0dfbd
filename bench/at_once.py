"""`make soak`: every pair of operations on one database, at the same time and a little apart. See `tests/support/at_once.py`."""

import argparse
import itertools
import time

from bench.rig import say
from tests.support.at_once import OPERATIONS, check, run, subject
from tests.support.branching import connect
from tests.support.histories import server_with_history

_APART_S = (0.0, 0.1, 0.4)


def main() -> None:
    """Ends with the first pair after which something isn't as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    rounds, began, refused = parser.parse_args().rounds, time.monotonic(), 0
    pairs = list(itertools.product(OPERATIONS, repeat=2))
    with server_with_history(freeze_after_s=60, page_after_s="never", stop_after_s="never") as (server, _):
        shop = server.create("shop")
        with connect(shop.url) as connection:
            connection.execute("CREATE TABLE things AS SELECT n, 'parent' AS what FROM generate_series(1, 5) AS n")
        for apart_s in _APART_S * rounds:
            for pair in pairs:
                one = subject(server, "shop")
                run(one, pair, apart_s)
                check(one, {"shop"})
                refused += len(one.refused)
            say(f"{len(pairs)} pairs, {apart_s} s apart, are done or clearly refused")
    count = len(pairs) * len(_APART_S) * rounds
    print(f"{count} pairs of operations at once: nothing lost, nothing left behind, {refused} refused; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
