"""Test a trained model: `python scripts/sweep.py --ckpt_path runs/protonet_glyphs/0 --shots 5`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
