-- The versions that records say they have. KEYS: the records. Returns of each '<_pos>|<_ver>|<_ts>', false where one of
-- the three is missing or the key is no hash. Only reads.
local found = {}
for i = 1, #KEYS do
  local held = redis.pcall('HMGET', KEYS[i], '_pos', '_ver', '_ts')
  found[i] = not held.err and held[1] and held[2] and held[3] and table.concat(held, '|') or false
end
return found
