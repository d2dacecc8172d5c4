"""One file an aggregation strategy."""
