"""The control schema in PostgreSQL (`sql/`, docs/control.md), from Python: watermarks, jobs, signals, verify runs,
letters, conflicts, the audit log.

Every function takes an open psycopg connection (in autocommit or in a transaction of the caller's), runs in the
caller's thread, and raises psycopg.Error as it comes: who opened the connection knows what to do about it. What only a
caller can have done wrong is a PreconditionError. Nothing here is needed for data to travel, so a failure here must
never stop a reader or a consumer.
"""
