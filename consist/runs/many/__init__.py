"""Many sets and many processes."""
