"""Bundles: where they live, how they are composed strictly, how they are checked offline."""
