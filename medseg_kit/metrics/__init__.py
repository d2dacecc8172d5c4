"""Overlap and surface metrics with an explicit policy for empty masks."""
