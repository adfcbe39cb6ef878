"""Dataclass fields as settings: what they mean, what they may be, and text to their values."""
