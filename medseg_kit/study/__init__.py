"""The resumable experiment runner."""
