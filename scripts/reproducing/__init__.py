"""What `scripts/reproduce.py` is made of: rows, what fits into the time, running, collecting, and the page."""
