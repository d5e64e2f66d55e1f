"""A FAISS index for semantic search."""

from consumers.faiss.content import Hit
from consumers.faiss.reading import Statistics
from consumers.faiss.store import FaissStore

__all__ = ["FaissStore", "Hit", "Statistics"]
