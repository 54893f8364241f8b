"""Test a trained model: `python scripts/test.py --ckpt_path runs/protonet_glyphs/0 --shots 5`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
