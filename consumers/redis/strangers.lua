-- Members of recency indexes that are no live record of that user. KEYS: indexes. ARGV: user column, index prefix,
-- 'tell' or 'remove'. Returns of each its name, whether a record has that name, and the record's field _key.
local user, prefix, found = ARGV[1], ARGV[2], {}

local function encode(value) -- as keys.encode_odd does
  return (string.gsub(value, '[%%:{}%c ]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

for _, index in ipairs(KEYS) do
  for _, member in ipairs(redis.call('ZREVRANGE', index, 0, -1)) do
    local held = redis.pcall('HMGET', member, '_pos', user, '_key')
    local record = not held.err and held[1]
    if not (record and held[2] and prefix .. encode(held[2]) == index) then
      found[#found + 1] = {member, record and 1 or 0, record and held[3]}
      if ARGV[3] == 'remove' then redis.call('ZREM', index, member) end
    end
  end
end
return found
