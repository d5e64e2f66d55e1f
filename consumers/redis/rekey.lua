-- Gives a table another key layout, when the record that has it is newer than all that was applied under the layout
-- held. What has to be removed of that one is noted in the same step, so that a crash forgets nothing.
-- KEYS: the sentinel. ARGV: instance, table, layout held, layout wanted, the record's position. Returns 1 when it was done.
local state, name = KEYS[1], ARGV[2]
local held = redis.call('HMGET', state, 'instance', 't:' .. name, 'n:' .. name)
if held[1] ~= ARGV[1] then return redis.error_reply('LOST the sentinel is gone or another one') end
if held[2] ~= ARGV[3] then return redis.error_reply('LOST the key layout of ' .. name .. ' was changed by another member') end
if (held[3] or '') >= ARGV[5] then return 0 end
if held[3] then redis.call('HSET', state, 'w:' .. held[3] .. ':' .. name, ARGV[3]) end
redis.call('HSET', state, 't:' .. name, ARGV[4], 'n:' .. name, ARGV[5])
return 1
