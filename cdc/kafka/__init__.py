"""The Kafka side: topics, partitioning, the transactional writer, progress."""
