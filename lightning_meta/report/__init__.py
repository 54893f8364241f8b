"""Figures and tables of runs, and in `transfer` the comparison of multi-task runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
