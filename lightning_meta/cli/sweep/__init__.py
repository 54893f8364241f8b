"""`lightning-meta sweep`: its file, its trials, and what several processes know of them together."""
