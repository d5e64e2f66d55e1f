-- Applies one batch: each record only when its position is newer than the one held; data and offsets together.
-- KEYS: the sentinel, then one key a record. ARGV: the call's settings, the column names of each shape of row, the
-- rows (all MessagePack), one after the other in one flat array, for small tables are slow to make. A row is
-- position, vector, shape, ts, _key, index key, score, value, ..., with the values in the order of the shape's columns,
-- nil for NULL; position, vector, 0 is a delete; position, reason, -1 a record that cannot be stored: what is held of
-- its key is marked as outdated.
-- Returns {upserts, deletes, stale, numbers of the records whose key holds something that is not ours}.
local state, call = KEYS[1], cmsgpack.unpack(ARGV[1])
local shapes, rows = cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local user, index_prefix, limit = call.user, call.index_prefix, call.recency_limit
local redis_call, redis_pcall = redis.call, redis.pcall

local held = redis_call('HMGET', state, 'instance', 'watermark', call.floor_field, call.table_field, call.newest_field)
if held[1] ~= call.instance then
  return redis.error_reply('LOST the sentinel is gone or another one')
end
for _, reached in ipairs(call.offsets) do
  local now = tonumber(redis_call('HGET', state, reached[1]) or 0)
  if now < reached[2] then
    return redis.error_reply('LOST the offsets of ' .. reached[1] .. ' went back')
  end
end
if call.table_field ~= '' and not held[4] then
  return redis.error_reply('LOST what was noted of ' .. call.table_field)
end
if call.table_field ~= '' and held[4] ~= call.layout then
  return redis.error_reply('LOST the key layout of ' .. call.table_field .. ' was changed by another member')
end
local floor = held[3] or ''

local function encode(value) -- as keys.encode_odd does
  if not string.find(value, '[%%:{}%c ]') then return value end
  return (string.gsub(value, '[%%:{}%c ]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

-- What is held, by key, kept true while the batch goes on: newest position ('' none, false not ours), whether something
-- stands under the key, whether a tombstone does, and the index it is in.
local positions, live, buried, home, missing = {}, {}, {}, {}, {}

local refused -- an error that says nothing of the key, as NOPERM

local function look(key)
  local position, owner
  if user then
    local found = redis_pcall('HMGET', key, '_pos', user)
    position, owner = found[1] or found.err and found, found[2]
  else
    position = redis_pcall('HGET', key, '_pos')
  end
  if type(position) == 'table' then
    if not string.find(position.err, 'WRONGTYPE', 1, true) then refused = position end
    positions[key] = false
  elseif position then
    positions[key], live[key] = position, true
    home[key] = owner and index_prefix .. encode(owner)
  else
    positions[key] = ''
    missing[#missing + 1] = key
  end
end

for i = 2, #KEYS do
  if positions[KEYS[i]] == nil then look(KEYS[i]) end
end
if refused then return refused end

local STEP = 1000 -- arguments of one command; Lua's stack takes 8000
for first = 1, #missing, STEP do
  local last, tombs = math.min(first + STEP - 1, #missing), {}
  for i = first, last do tombs[#tombs + 1] = call.tomb_prefix .. missing[i] end
  for i, tomb in ipairs(redis_call('MGET', unpack(tombs))) do
    if tomb then
      local key = missing[first + i - 1]
      positions[key], buried[key] = string.sub(tomb, 1, 32), true
    end
  end
  if redis_call('EXISTS', unpack(missing, first, last)) > 0 then -- somebody else's hash: it is replaced whole
    for i = first, last do live[missing[i]] = true end
  end
end

local fields = {'_pos', '', '_ver', '', '_ts', ''}

local function store(key, at) -- the row's place in rows
  local names, size = shapes[rows[at + 2]], 6
  fields[2], fields[4], fields[6] = rows[at], rows[at + 1], rows[at + 3]
  for i = 1, #names do
    local value = rows[at + 6 + i]
    if value then
      fields[size + 1], fields[size + 2] = names[i], value
      size = size + 2
    end
  end
  if rows[at + 4] then
    fields[size + 1], fields[size + 2] = '_key', rows[at + 4]
    size = size + 2
  end
  redis_call('HSET', key, unpack(fields, 1, size))
  if live[key] and redis_call('HLEN', key) * 2 ~= size then -- fields of an older row remain
    redis_call('DEL', key)
    redis_call('HSET', key, unpack(fields, 1, size))
  end
  if call.ttl then redis_call('EXPIRE', key, call.ttl) end
end

local entering = {} -- index → member → score, written once at the end

local function move(key, target, score)
  local left = home[key]
  if left and left ~= target then
    if entering[left] then entering[left][key] = nil end
    redis_call('ZREM', left, key)
  end
  if target then
    local members = entering[target]
    if not members then
      members = {}
      entering[target] = members
    end
    members[key] = score
  end
  home[key] = target
end

local upserts, deletes, stale, foreign = 0, 0, 0, {}
local at = 1
for i = 2, #KEYS do
  local key, position, shape = KEYS[i], rows[at], rows[at + 2]
  local held_position = positions[key]
  if shape == -1 then
    if held_position and held_position ~= '' and live[key] and position > held_position and position >= floor then
      redis_call('HSET', key, '_stale', position .. ' ' .. rows[at + 1])
    end
  elseif not held_position then
    foreign[#foreign + 1] = i - 2
  elseif position <= held_position or position < floor then
    stale = stale + 1
  else
    positions[key] = position
    if shape == 0 then
      if live[key] then redis_call('DEL', key) end
      redis_call('SET', call.tomb_prefix .. key, position .. rows[at + 1], 'EX', call.tomb_seconds)
      live[key], buried[key] = nil, true
      deletes = deletes + 1
    else
      store(key, at)
      if buried[key] then redis_call('DEL', call.tomb_prefix .. key) end
      live[key], buried[key] = true, nil
      upserts = upserts + 1
    end
    if user then move(key, shape ~= 0 and rows[at + 5], rows[at + 6]) end
  end
  at = at + (shape <= 0 and 3 or 7 + #shapes[shape])
end

for index, members in pairs(entering) do
  local args, size = {}, 0
  for key, score in pairs(members) do
    args[size + 1], args[size + 2] = score, key
    size = size + 2
    if size >= STEP then
      redis_call('ZADD', index, unpack(args, 1, size))
      size = 0
    end
  end
  if size > 0 then redis_call('ZADD', index, unpack(args, 1, size)) end
  if redis_call('ZCARD', index) > limit then redis_call('ZREMRANGEBYRANK', index, 0, -limit - 1) end
  if call.ttl then redis_call('EXPIRE', index, call.ttl) end
end

if call.watermark > (held[2] or '') then redis_call('HSET', state, 'watermark', call.watermark) end
if call.newest_field ~= '' and call.watermark > (held[5] or '') then
  redis_call('HSET', state, call.newest_field, call.watermark)
end
if #foreign > 0 then return {upserts, deletes, stale, foreign} end -- the offsets wait until that is told
for _, reached in ipairs(call.offsets) do
  if reached[3] > tonumber(redis_call('HGET', state, reached[1]) or 0) then
    redis_call('HSET', state, reached[1], string.format('%d', reached[3]))
  end
end
return {upserts, deletes, stale, foreign}
