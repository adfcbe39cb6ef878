"""The embedded model: the world it is trained on, how it is trained, and its weights."""
