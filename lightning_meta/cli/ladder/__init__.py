"""`lightning-meta ladder`: reads the file, plans the runs, trains them and reports."""
