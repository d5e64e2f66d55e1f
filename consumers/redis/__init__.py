"""Redis as working memory: one hash a record, applied by position through one Lua script."""

from consumers.redis.keys import keys_for
from consumers.redis.store import RedisStore

__all__ = ["RedisStore", "keys_for"]
