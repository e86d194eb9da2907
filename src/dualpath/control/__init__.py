"""The ZeroMQ sockets that all roles speak through: bounds, dead peers, authentication and encryption."""
