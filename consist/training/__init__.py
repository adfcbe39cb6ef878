"""Teaches a model a subject from photos, and reads and writes what was learned."""
