-- Renews a lease of one holder and touches nothing but the lock itself: while a slot is being moved, a call for one key finds
-- it wherever it is, and a call for several keys has to wait for the last of them.
--
-- KEYS: the lock. ARGV: the attempt's nonce, the TTL in milliseconds.
local held = redis.call('GETRANGE', KEYS[1], '0', '15')
if held == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif held == 'ringfence:shared' or held == 'ringfence:permit' then
  return redis.error_reply('TRYAGAIN who holds it is written in other keys')
end
return 0
