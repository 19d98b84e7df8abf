-- heartbeat: say that this replica lives, and tell who else does. It writes,
-- because a store that only answers reads is of no use to the limiter.
--
-- KEYS: a sorted set of replica ids by when they were last seen (ms of Redis's
-- own clock), and the store's epoch: a value that is gone when its data is.
-- ARGV: replica id, how long a silent replica counts (ms), an epoch to set
-- where there is none.
-- Reply: epoch, now(us), id...
local t = redis.call('TIME')
local ms = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], ms, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 2)
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[3]) end
-- The epoch outlives every key that a replica may still remember spends of;
-- one that expires while all replicas are away costs only a comparison.
redis.call('PEXPIRE', KEYS[2], 32 * 86400000)
local reply = redis.call('ZRANGE', KEYS[1], 0, -1)
table.insert(reply, 1, redis.call('GET', KEYS[2]))
table.insert(reply, 2, string.format('%.0f', t[1] * 1000000 + t[2]))
return reply
