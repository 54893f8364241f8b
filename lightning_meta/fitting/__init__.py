"""`fit`: the life of a run, from its checks to its results."""
