-- Applies one batch: each record only when its position is newer than the one held; data and offsets together.
-- KEYS: the sentinel, then one key a record. ARGV: the call's settings, the column names of each shape of row, the
-- rows (all MessagePack). A row is {position, vector, shape, ts, _key, index key, score, value, ...}, values in the
-- order of the shape's columns, nil for NULL; {position, vector, 0} is a delete.
-- Returns {upserts, deletes, stale, numbers of the records whose key holds something that is not ours}.
local state, call = KEYS[1], cmsgpack.unpack(ARGV[1])
local shapes, rows = cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local user, index_prefix, limit = call.user, call.index_prefix, call.recency_limit
local redis_call, redis_pcall = redis.call, redis.pcall

local held = redis_call('HMGET', state, 'instance', 'watermark', call.floor_field)
if held[1] ~= call.instance then
  return redis.error_reply('LOST the sentinel is gone or another one')
end
for _, reached in ipairs(call.offsets) do
  local now = tonumber(redis_call('HGET', state, reached[1]) or 0)
  if now < reached[2] then
    return redis.error_reply('LOST the offsets of ' .. reached[1] .. ' went back')
  end
end
local floor = held[3] or ''

local function encode(value) -- as keys.encode_odd does
  return (string.gsub(value, '[%%:{}%c ]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

local function leave_index(old_user, key, kept)
  local index = old_user and index_prefix .. encode(old_user)
  if index and index ~= kept then redis_call('ZREM', index, key) end
end

local fields = {'_pos', '', '_ver', '', '_ts', ''}

local function store(key, row)
  local names, size = shapes[row[3]], 6
  fields[2], fields[4], fields[6] = row[1], row[2], row[4]
  for i = 1, #names do
    local value = row[i + 7]
    if value then
      fields[size + 1], fields[size + 2] = names[i], value
      size = size + 2
    end
  end
  if row[5] then
    fields[size + 1], fields[size + 2] = '_key', row[5]
    size = size + 2
  end
  redis_call('HSET', key, unpack(fields, 1, size))
  if redis_call('HLEN', key) * 2 ~= size then -- fields of an older row remain
    redis_call('DEL', key)
    redis_call('HSET', key, unpack(fields, 1, size))
  end
  if call.ttl then redis_call('EXPIRE', key, call.ttl) end
end

local function enter_index(key, row)
  local index = row[6]
  if not index then return end
  redis_call('ZADD', index, row[7], key)
  if redis_call('ZCARD', index) > limit then redis_call('ZREMRANGEBYRANK', index, 0, -limit - 1) end
  if call.ttl then redis_call('EXPIRE', index, call.ttl) end
end

local upserts, deletes, stale, foreign = 0, 0, 0, {}
for i = 2, #KEYS do
  local key, row = KEYS[i], rows[i - 1]
  local position, held_position, old_user, tomb
  if user then
    local found = redis_pcall('HMGET', key, '_pos', user)
    if found.err then
      held_position = found
    else
      held_position, old_user = found[1], found[2]
    end
  else
    held_position = redis_pcall('HGET', key, '_pos')
  end
  position = row[1]
  if type(held_position) == 'table' then -- WRONGTYPE
    foreign[#foreign + 1] = i - 2
  else
    if not held_position then
      tomb = redis_call('GET', call.tomb_prefix .. key)
      held_position = tomb and string.sub(tomb, 1, 32) or ''
    end
    if position <= held_position or position < floor then
      stale = stale + 1
    elseif row[3] == 0 then
      redis_call('DEL', key)
      redis_call('SET', call.tomb_prefix .. key, position .. row[2], 'EX', call.tomb_seconds)
      if user then leave_index(old_user, key) end
      deletes = deletes + 1
    else
      store(key, row)
      if tomb then redis_call('DEL', call.tomb_prefix .. key) end
      if user then
        leave_index(old_user, key, row[6])
        enter_index(key, row)
      end
      upserts = upserts + 1
    end
  end
end

if call.watermark > (held[2] or '') then redis_call('HSET', state, 'watermark', call.watermark) end
for _, reached in ipairs(call.offsets) do
  if reached[3] > tonumber(redis_call('HGET', state, reached[1]) or 0) then
    redis_call('HSET', state, reached[1], string.format('%d', reached[3]))
  end
end
return {upserts, deletes, stale, foreign}
