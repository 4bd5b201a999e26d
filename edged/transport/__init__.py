"""How payloads and descriptors travel between processes: see docs/protocol.md."""
