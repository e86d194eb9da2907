"""The live driver of protocol/: sockets, clock, prefix index."""
