"""Transforms that MONAI lacks, and the pipelines built from them."""
