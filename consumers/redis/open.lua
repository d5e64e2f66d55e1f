-- Makes the sentinel when there is none, and returns all of it. KEYS: the sentinel. ARGV: our new instance, layout.
redis.call('HSETNX', KEYS[1], 'instance', ARGV[1])
redis.call('HSETNX', KEYS[1], 'layout', ARGV[2])
return redis.call('HGETALL', KEYS[1])
