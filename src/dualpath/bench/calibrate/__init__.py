"""The simulator against the live cluster: constants from one short run, predictions held against others."""
