"""`make soak`: a thousand branches of one database under load, each of them checked.

pgbench and four clients that note each acknowledged commit go on all the while. Each branch must hold exactly a prefix of the commits that
each client was told of, and whole transactions of pgbench; of every twentieth a branch is made, whose pages and indexes are checked.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench.rig import running, say
from tests.support.branching import branch_and_check, load

_AT_ONCE = 4


def main() -> None:
    """Ends with the first branch that isn't as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    count = parser.parse_args().count
    began = time.monotonic()
    with running(freeze_after_s=3600, page_after_s="never", stop_after_s="never") as torpor:
        shop = torpor.create("shop")
        with load(shop) as inserters, ThreadPoolExecutor(_AT_ONCE) as pool:
            checks = pool.map(lambda number: branch_and_check(torpor, shop, inserters, number % 20 == 0), range(count))
            for number, _ in enumerate(checks, 1):
                if number % 50 == 0:
                    say(f"{number} of {count} branches hold what they must")
            commits = sum(inserter.acknowledged for inserter in inserters)
        left = {path.name for path in (torpor.data_dir / "volumes").iterdir()} - {shop.id, ".templates"}
        if left:
            sys.exit(f"branches left {left} behind")
    print(f"{count} branches of a database under load, {commits} acknowledged commits, none lost; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
