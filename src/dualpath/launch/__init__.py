"""Start a cluster: local processes under one supervisor."""
