"""The console script as a module: `python -m lightning_meta fit --config FILE`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main())
