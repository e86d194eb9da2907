"""The simulator: models of NICs, engines and storage under the live cluster's own policies and protocol."""
