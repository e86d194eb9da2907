"""Sans-IO state machines: life of a request, slot ledger, membership. Live cluster and simulator drive the same ones."""
