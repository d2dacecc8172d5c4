"""The demonstration: a federation of partly labelled sites, its rivals, and what came out."""
