"""Sans-IO state machines: life of a request, slots, membership. Live cluster and simulator drive the same ones."""
