"""What `scripts/benchmark.py` measures, a room for each purpose."""
