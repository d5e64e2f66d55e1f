"""Kafka → stores: the consumers' half of memory-cdc."""
