"""Runs to scores, and scores to a report."""
