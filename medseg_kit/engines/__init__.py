"""The training step that every method fills in, its schedules and handlers."""
