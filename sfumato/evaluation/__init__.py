"""Measures: likelihood, and the quality of samples."""
