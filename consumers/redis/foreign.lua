-- One bounded step over the whole database: looks for a key that is not ours. KEYS: none. ARGV: cursor, namespace,
-- then one Lua pattern for each kind of key. Returns {cursor, a foreign key or false}.
local page = redis.call('SCAN', ARGV[1], 'COUNT', 500) -- about a millisecond
for _, key in ipairs(page[2]) do
  local ours = string.sub(key, 1, #ARGV[2]) == ARGV[2]
  for i = 3, #ARGV do ours = ours or string.find(key, ARGV[i]) ~= nil end
  if not ours then return {page[1], key} end
end
return {page[1], false}
