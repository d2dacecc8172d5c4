"""NVIDIA FLARE: controller, client script and recipe."""
