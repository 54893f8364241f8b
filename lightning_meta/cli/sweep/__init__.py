"""`lightning-meta sweep`: reads the file, runs the trials and keeps the study that several processes share."""
