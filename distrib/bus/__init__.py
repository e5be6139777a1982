"""The bus: topics, the one message schema, and the MQTT adapter (docs/formats/messages.md)."""
