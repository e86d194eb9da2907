"""Experiments: real agents against a live cluster, results as JSON, tables and plots from result files."""
