"""Label images: `python scripts/predict.py --ckpt_path RUN --support FOLDER --query FOLDER`."""

import sys

from lightning_meta.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
