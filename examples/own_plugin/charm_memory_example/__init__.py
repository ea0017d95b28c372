"""Two memory providers, to learn from."""
