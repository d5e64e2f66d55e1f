"""What `cdc demo` shows: real texts, ordinary SQL, the stores as a client sees them, and how it is told."""
