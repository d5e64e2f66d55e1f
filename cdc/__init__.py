"""PostgreSQL → Kafka: the reader's half of memory-cdc, and the contract both halves share."""

from importlib.metadata import version

__version__ = version("memory-cdc")
