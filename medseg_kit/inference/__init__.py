"""Inferers and the batch predictor."""
