"""A FAISS index for semantic search."""

from consumers.faiss.content import Hit
from consumers.faiss.store import FaissStore, Statistics

__all__ = ["FaissStore", "Hit", "Statistics"]
