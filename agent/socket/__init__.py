"""The agent's local socket: callers, server and client (docs/formats/socket.md)."""
