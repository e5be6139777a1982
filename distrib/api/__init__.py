"""The REST API of the head (docs/formats/api.md): thin routes over the services."""
