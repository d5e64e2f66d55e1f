-- Sets fields of the sentinel, but only of the one we know. KEYS: the sentinel. ARGV: instance, field, value, ...
-- A field of a truncate floor (`f:`) only ever grows. Returns 1.
if redis.call('HGET', KEYS[1], 'instance') ~= ARGV[1] then
  return redis.error_reply('LOST the sentinel is gone or another one')
end
for i = 2, #ARGV, 2 do
  local held = string.sub(ARGV[i], 1, 2) == 'f:' and redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if ARGV[i + 1] > held then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
return 1
