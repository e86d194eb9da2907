"""Lanes on real fabrics: what switches and hosts must be told, whether they were, and whether it helps."""
