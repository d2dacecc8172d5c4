"""Pairwise registration of volumes, and what label-efficient training draws from it."""
