"""Train a ladder of methods and compare them: `python scripts/ladder.py --config configs/ladder_glyphs.yaml`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["ladder", *sys.argv[1:]]))
