"""`fit`: a run, from the checks of its arguments to its results."""
