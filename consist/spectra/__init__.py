"""Singular values to singular values, and the one place that decomposes a matrix."""
