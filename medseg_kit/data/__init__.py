"""Manifests, readers, datalists, splits and synthetic patients."""
