"""Draw training curves in one picture: `python scripts/curves.py runs/protonet_glyphs/0 runs/protonet_glyphs/1`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["curves", *sys.argv[1:]]))
