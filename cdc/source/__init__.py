"""The PostgreSQL side: slot and stream, decoders, types, snapshot, heartbeat."""
