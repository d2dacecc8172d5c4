"""One file a method, each a training step."""
