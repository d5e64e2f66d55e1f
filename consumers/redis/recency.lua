-- What records and the recency index say of each other. KEYS: records, or none for one step over the database. ARGV:
-- cursor, glob, Lua pattern, how many keys to look at, user column, recency column or '', index prefix. Returns {cursor,
-- what was found}: of each record with a user, one after the other, its key, the index' key, the recency column, the time
-- it was written, its score; without a score also how many the index holds and the least score there. Only reads.
local names, cursor = KEYS, '0'
if #KEYS == 0 then
  local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[4], 'TYPE', 'hash')
  cursor, names = page[1], page[2]
end
local user, recency, prefix, found = ARGV[5], ARGV[6], ARGV[7], {}

local function encode(value) -- as keys.encode_odd does
  return (string.gsub(value, '[%%:{}%c ]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

for _, key in ipairs(names) do
  local held = string.find(key, ARGV[3]) and redis.pcall('HMGET', key, '_pos', user, '_ts', recency)
  if held and not held.err and held[1] and held[2] then
    local index = prefix .. encode(held[2])
    local score = redis.pcall('ZSCORE', index, key)
    if type(score) == 'table' then score = false end -- no sorted set
    local least = not score and redis.pcall('ZREVRANGE', index, -1, -1, 'WITHSCORES')
    found[#found + 1] = {
      key, index, recency ~= '' and held[4], held[3], score,
      least and not least.err and redis.call('ZCARD', index), least and not least.err and least[2] or false,
    }
  end
end
return {cursor, found}
