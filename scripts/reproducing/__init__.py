"""Parts of `scripts/reproduce.py`: rows, planning, running, collecting results, and the page."""
