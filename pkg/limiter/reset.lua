-- reset: forget what an identity has used. The key stays, empty and with a
-- birth that starts with 'r': replicas that hold leases or remember spends of
-- the incarnation before drop them, instead of taking it for a loss.
--
-- ARGV: life(ms).
local t = redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'b', string.format('r%.0f', t[1] * 1000000 + t[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
