-- Records and tombstones that say they are newer than anything can be would refuse all that comes: they no longer do.
-- KEYS: the records. ARGV: the highest position there can be, the position to have instead, the tombstones' prefix.
-- Returns how many there were.
local number = 0
for _, key in ipairs(KEYS) do
  local held, tomb = redis.pcall('HGET', key, '_pos'), redis.call('GET', ARGV[3] .. key)
  if type(held) == 'string' and held > ARGV[1] then
    redis.call('HSET', key, '_pos', ARGV[2])
    number = number + 1
  end
  if tomb and string.sub(tomb, 1, 32) > ARGV[1] then
    redis.call('DEL', ARGV[3] .. key)
    number = number + 1
  end
end
return number
