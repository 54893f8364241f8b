"""The command line: `lightning-meta fit --config FILE` and `lightning-meta test --ckpt_path RUN`."""

from lightning_meta.cli.main import main

__all__ = ["main"]
