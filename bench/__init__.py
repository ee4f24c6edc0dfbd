"""The benchmarks: each module but `harness` measures one promise and prints a table; `python -m bench` runs all of them.

A benchmark has `def measure() -> list[Result]` and ends with `if __name__ == "__main__": harness.main(measure)`. Numbers that are compared
come from the same run.
"""
