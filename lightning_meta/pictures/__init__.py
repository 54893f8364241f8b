"""Callbacks that draw figures of a meta-learner after its test, into `figures/` of the run directory."""

from lightning_meta.public_names import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
