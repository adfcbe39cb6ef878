"""A config to a run folder: drawn, extended, redone, kept by name."""
