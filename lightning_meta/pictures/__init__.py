"""Callbacks that draw figures of a meta-learner after its test, into `figures/` of the run directory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
