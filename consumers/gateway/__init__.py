"""HTTP: search and statistics."""
