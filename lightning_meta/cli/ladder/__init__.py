"""`lightning-meta ladder`: its file, the runs that it plans, and the processes that train them."""
