"""Evaluation: readers of public data sets."""
