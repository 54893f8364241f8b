"""Search options of fit: `python scripts/sweep.py --config configs/sweeps/maml_glyphs.yaml --trials 20`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
