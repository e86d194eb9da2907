"""Experiments: real agents against fresh clusters, one read policy after the other, and what came of it."""
