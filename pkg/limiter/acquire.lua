-- acquire: settle debts and refunds, then debit need..want tokens from every
-- window of one policy, or from none.
--
-- All times are microseconds of Redis's own clock, all amounts are tokens.
-- The key is a hash. Field 'b' is its birth: the instant at which this
-- incarnation was first written, by which replicas tell a lost state. Every
-- other field is bucket*8 + window index:
--   S strict sliding window: bucket = floor(t/P), P = W/32 rounded up; the
--     bucket counts until 32 further ones have passed, so for W..W+P.
--   F fixed window aligned to the epoch: bucket = floor(t/W).
--   C calendar window: bucket = its start in seconds; ARGV has the borders.
--   T token bucket (GCRA): one field with bucket 0 that holds the TAT.
--
-- ARGV: now ('' for TIME), need, sync, want, share, grace, tau, life(ms), nw,
--   nw times: kind, limit, unit (S: P, F: W, T: us per token, C: 0), for C
--     four ascending borders around the caller's idea of now, and for T how far
--     ahead of its burst (us) callers may be told to wait for their tokens;
--   number of debts, each: window, age(us), amount (T: us);
--   number of refunds, and if any: birth, then each: field, amount.
-- need: the least that is worth granting. sync: what callers wait for and use
--   within grace. want >= sync: what the caller would take ahead, to be used
--   within tau. Beyond sync no more than 1/share of what is left is granted.
-- Reply: granted, ttl, retry, now, birth, and per window: remaining, reset
--   (until remaining grows without refunds), field (of the debit).
--   granted 0 with retry 0 is no denial: nothing was needed. granted -1: no
--   border of a C window fits Redis's clock, nothing was done. Where something
--   is granted, retry is how long the last of it has to wait for its turn.
-- A denial writes nothing.
local key, N = KEYS[1], 32
local floor, ceil, fmt, call = math.floor, math.ceil, string.format, redis.call
local now = ARGV[1]
if now == '' then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = now + 0
end
local need, sync, want, share = ARGV[2] + 0, ARGV[3] + 0, ARGV[4] + 0, ARGV[5] + 0
local grace, tau, life, nw = ARGV[6] + 0, ARGV[7] + 0, ARGV[8] + 0, ARGV[9] + 0

local kind, limit, unit, cur, fin, used, live, tat, ahead = {}, {}, {}, {}, {}, {}, {}, {}, {}
local at = 10
for w = 1, nw do
  local k = ARGV[at]
  kind[w], limit[w], unit[w], used[w], live[w], tat[w] = k, ARGV[at + 1] + 0, ARGV[at + 2] + 0, 0, {}, 0
  at = at + 3
  if k == 'S' then
    cur[w] = floor(now / unit[w])
  elseif k == 'F' then
    cur[w] = floor(now / unit[w])
    fin[w] = (cur[w] + 1) * unit[w]
  elseif k == 'C' then
    for i = at, at + 2 do
      local from, to = ARGV[i] + 0, ARGV[i + 1] + 0
      if now >= from and now < to then cur[w], fin[w] = floor(from / 1000000), to end
    end
    at = at + 4
    if not cur[w] then return {-1, 0, 0, now, 0} end
  else
    cur[w] = 0
    ahead[w] = ARGV[at] + 0
    at = at + 1
  end
end

local wrote, fresh = false, false

-- Debts: tokens that a replica admitted while it could not ask. They were
-- spent, so they are charged even above the limit, at the age they have.
local debts = ARGV[at] + 0
at = at + 1
for i = 1, debts do
  local w, age, amount = ARGV[at] + 0, ARGV[at + 1] + 0, ARGV[at + 2] + 0
  at = at + 3
  local k, b = kind[w], nil
  if k == 'S' then
    b = floor((now - age) / unit[w])
  elseif k == 'F' then
    b = floor((now - age) / unit[w])
  elseif k == 'C' then
    b = cur[w]
  else
    local f = fmt('%.0f', w - 1)
    local old = (call('HGET', key, f) or 0) + 0
    call('HSET', key, f, fmt('%.0f', math.max(old, now - age) + amount))
  end
  if b then call('HINCRBY', key, fmt('%.0f', b * 8 + w - 1), amount) end
  wrote, fresh = true, true
end

-- Refunds: tokens that nobody spent. Only to the incarnation that they were
-- debited from, and never below nothing. A token bucket's, in microseconds and
-- with a field that is followed by = and the TAT that the debit left, only where
-- nobody has taken anything since: it is as if they had never been taken then.
local refunds = ARGV[at] + 0
at = at + 1
if refunds > 0 then
  local same = call('HGET', key, 'b') == ARGV[at]
  at = at + 1
  for i = 1, refunds do
    local f, amount = ARGV[at], ARGV[at + 1] + 0
    at = at + 2
    local bucket, tat = f:match('^(%d+)=(%d+)$')
    local have = same and call('HGET', key, bucket or f)
    if have and bucket then
      if have == tat then call('HSET', key, bucket, fmt('%.0f', tat - amount)) end
    elseif have and have + 0 >= amount then
      call('HINCRBY', key, f, -amount)
    end
  end
end

local birth, dead = '0', {}
local flat = call('HGETALL', key)
for i = 1, #flat, 2 do
  local f, v = flat[i], flat[i + 1]
  if f == 'b' then
    birth = v
  else
    local id = f + 0
    local b = floor(id / 8)
    local w = id - b * 8 + 1
    v = v + 0
    local k = kind[w]
    -- A bucket ahead of now is a lease's, or written before Redis's clock
    -- stepped back: it counts.
    if k == 'T' then
      tat[w] = v
    elseif (k == 'S' and b >= cur[w] - N) or ((k == 'F' or k == 'C') and b >= cur[w]) then
      used[w] = used[w] + v
      if v > 0 then
        local l = live[w]
        l[#l + 1] = {b, v}
      end
    else
      dead[#dead + 1] = f
    end
  end
end

-- rem is what is left now, most what callers may have who wait for it.
local rem, least, most = {}, nil, nil
for w = 1, nw do
  local room
  if kind[w] == 'T' then
    local level = tat[w] - now
    if level < 0 then level = 0 end
    rem[w] = floor((limit[w] * unit[w] - level) / unit[w] + 1e-9)
    room = floor((limit[w] * unit[w] + ahead[w] - level) / unit[w] + 1e-9)
  else
    rem[w] = limit[w] - used[w]
    room = rem[w]
  end
  if not least or rem[w] < least then least = rem[w] end
  if not most or room < most then most = room end
end

local granted, ttl, retry = 0, 0, 0
if most < need then
  for w = 1, nw do
    local short = need - rem[w]
    if short > 0 then
      local wait
      if kind[w] == 'S' then
        local l = live[w]
        table.sort(l, function(x, y) return x[1] < y[1] end)
        for i = 1, #l do
          wait = (l[i][1] + N + 1) * unit[w] - now
          short = short - l[i][2]
          if short <= 0 then break end
        end
      elseif kind[w] == 'T' then
        wait = ceil(tat[w] - now - (limit[w] - need) * unit[w] - ahead[w])
      else
        wait = fin[w] - now
      end
      if wait and wait > retry then retry = wait end
    end
  end
  if retry < 1 then retry = 1 end
elseif most > 0 then
  granted = want
  if want > sync then
    -- Ahead of need goes only a share of what is left.
    local cap = floor(least / share)
    if cap < sync then cap = sync end
    if granted > cap then granted = cap end
  end
  if granted > most then granted = most end
end

local reply = {granted, 0, retry, now, birth}
if granted > 0 then
  for w = 1, nw do
    if kind[w] == 'T' then
      tat[w] = math.max(tat[w], now) + ceil(granted * unit[w])
      retry = math.max(retry, tat[w] - now - limit[w] * unit[w])
    end
  end
  retry = ceil(retry)
  reply[3] = retry
  ttl = grace + retry
  if granted > sync then
    ttl = tau
    for w = 1, nw do
      if fin[w] and fin[w] - now < ttl then ttl = fin[w] - now end
    end
  end
  for w = 1, nw do
    local f
    if kind[w] == 'T' then
      f = fmt('%.0f', w - 1)
      local full = fmt('%.0f', tat[w])
      call('HSET', key, f, full)
      fresh = true
      reply[3 + 3 * w + 2] = f .. '=' .. full
    else
      -- Charged where the last token may be spent: that is what keeps the
      -- bound of the sliding window whatever the leases do.
      local b = cur[w]
      if kind[w] == 'S' then b = floor((now + ttl) / unit[w]) end
      f = fmt('%.0f', b * 8 + w - 1)
      if call('HINCRBY', key, f, granted) == granted then fresh = true end
      local l = live[w]
      l[#l + 1] = {b, granted}
      reply[3 + 3 * w + 2] = f
    end
    rem[w] = rem[w] - granted
  end
  wrote = true
  if #dead > 0 then call('HDEL', key, unpack(dead)) end
end

for w = 1, nw do
  local reset = 0
  if kind[w] == 'S' then
    local l, oldest = live[w], nil
    for i = 1, #l do
      if not oldest or l[i][1] < oldest then oldest = l[i][1] end
    end
    if oldest then reset = (oldest + N + 1) * unit[w] - now end
  elseif kind[w] == 'T' then
    local left = rem[w] < 0 and 0 or rem[w]
    if tat[w] > now then reset = ceil(tat[w] - now - (limit[w] - left - 1) * unit[w]) end
    if reset < 0 then reset = 0 end
  else
    reset = fin[w] - now
  end
  reply[3 + 3 * w] = rem[w] < 0 and 0 or rem[w]
  reply[3 + 3 * w + 1] = reset
  if not reply[3 + 3 * w + 2] then reply[3 + 3 * w + 2] = '' end
end

if wrote then
  if birth == '0' then
    birth = fmt('%.0f', now)
    call('HSET', key, 'b', birth)
  end
  if fresh then
    -- Whoever creates a field leaves the key the life of the longest lease, so
    -- that no later write can shorten the life of what was charged ahead.
    for w = 1, nw do
      if kind[w] == 'T' then
        local ms = ceil((tat[w] - now) / 1000) + 1
        if ms > life then life = ms end
      end
    end
    call('PEXPIRE', key, life)
  end
end
reply[2], reply[5] = ttl, birth
return reply
