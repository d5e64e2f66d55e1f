-- One bounded step over a table's records: SCAN, then only keys that fit the table's pattern exactly and hold a position.
-- ARGV: cursor, glob, Lua pattern, how many keys to look at, what to do: 'count', 'list', 'having' (counts, and
-- those with the field ARGV[6] again as the one thing listed), or a position below which records are removed; then for
-- removal: user column or '', index prefix, and, with the sentinel in KEYS, the field in it that has to be there: what
-- another member has removed may be filled again already. Returns {cursor, count, what was listed}.
if KEYS[1] and redis.call('HEXISTS', KEYS[1], ARGV[8]) == 0 then return {'0', 0, {}} end
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[4], 'TYPE', 'hash')
local pattern, task, user = ARGV[3], ARGV[5], ARGV[6]
local count, listed = 0, {}

local function encode(value) -- as keys.encode_odd does
  return (string.gsub(value, '[%%:{}%c ]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

local function remove(key)
  local owner = user ~= '' and redis.call('HGET', key, user)
  if owner then redis.call('ZREM', ARGV[7] .. encode(owner), key) end
  redis.call('DEL', key)
  count = count + 1
end

for _, key in ipairs(page[2]) do
  if string.find(key, pattern) then
    if task == 'count' then
      count = count + redis.call('HEXISTS', key, '_pos')
    elseif task == 'having' then
      local held = redis.call('HEXISTS', key, '_pos')
      count = count + held
      listed[1] = (listed[1] or 0) + held * redis.call('HEXISTS', key, user)
    elseif task == 'list' then
      local found = redis.call('HMGET', key, '_pos', '_key')
      if found[1] then listed[#listed + 1] = {key, found[1], found[2]} end
    else
      local position = redis.call('HGET', key, '_pos')
      if position and position < task then remove(key) end
    end
  end
end
return {page[1], count, listed}
