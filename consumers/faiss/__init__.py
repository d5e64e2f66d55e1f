"""A FAISS index for semantic search."""
