"""The words that all other folders share: ids, units, block layout and keys, requests, read plans, errors."""
