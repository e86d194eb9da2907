"""What this host offers a cluster: found, measured, judged, and written down as a profile."""
