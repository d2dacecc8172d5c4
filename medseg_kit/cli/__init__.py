"""Command line: thin functions, heavy imports inside."""
