"""Ablations: many settings of the methods, drawn from the same noise, measured and compared."""
