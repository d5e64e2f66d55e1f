-- Swaps two databases in one step, but only when the other one holds the store that is meant. KEYS: the sentinel (its
-- name in both). ARGV: this database, the other one, the role the other's sentinel has to have, its role's new name here.
-- Returns 1; an error when there is no such store.
redis.call('SELECT', ARGV[2])
local role = redis.call('HGET', KEYS[1], 'role')
redis.call('SELECT', ARGV[1])
if role ~= ARGV[3] then return redis.error_reply('NOSTORE database ' .. ARGV[2] .. ' holds no ' .. ARGV[3]) end
redis.call('SWAPDB', ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'role', 'live', 'beside', ARGV[2])
redis.call('SELECT', ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'role', 'previous', 'beside', ARGV[1]) end
redis.call('SELECT', ARGV[1])
return 1
