"""Train and test a model: `python scripts/fit.py --config configs/protonet_glyphs.yaml`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
