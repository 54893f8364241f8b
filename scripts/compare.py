"""Compare multi-task runs: `python scripts/compare.py runs/multi_head --baseline runs/independent`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
