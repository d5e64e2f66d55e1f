-- Notes which logs the offsets belong to, and forgets those of logs that are no more. KEYS: the sentinel. ARGV: instance,
-- how many fields to forget, these fields, then field, value, ... to note. Returns 1.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then
  return redis.error_reply('LOST the sentinel is gone or another one')
end
local gone = tonumber(ARGV[2])
for i = 3, 2 + gone do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 3 + gone, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
