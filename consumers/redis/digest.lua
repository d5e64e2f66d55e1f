-- SHA-1 over what records really hold, so that verify need not fetch them. KEYS: the records. ARGV: the fields
-- (MessagePack), 'all' for one digest of them all or 'each' for one a record. A record is the MessagePack of its fields'
-- values in that order, false where there is none, and of how many fields it has in all; of a key that is no hash, its
-- error. Only reads.
local fields, texts = cmsgpack.unpack(ARGV[1]), {}
for i = 1, #KEYS do
  local held = redis.pcall('HMGET', KEYS[i], unpack(fields))
  if held.err then
    texts[i] = held.err
  else
    held[#held + 1] = tostring(redis.call('HLEN', KEYS[i]))
    texts[i] = cmsgpack.pack(held)
  end
end
if ARGV[2] == 'all' then return redis.sha1hex(table.concat(texts)) end
for i = 1, #texts do texts[i] = redis.sha1hex(texts[i]) end
return texts
