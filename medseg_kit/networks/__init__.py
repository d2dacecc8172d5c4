"""One file an architecture, pure modules."""
