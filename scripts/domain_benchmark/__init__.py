"""The parts of `scripts/domains.py`."""
