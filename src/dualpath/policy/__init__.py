"""Pure choices on immutable snapshots (paper sections 3 and 5), and the baselines they are compared with."""
