-- A record behind a lock's fence.
--
-- KEYS: the lock, the prefix of what stands beside it, the record.
-- ARGV: the verb; but for `read` and `holds`, the token: its nonce, its grant number, its hand-over; then what the verb writes.
--   read, holds,            a record on this server; `holds` says whether there is a value
--   open, write, remove
--   read, open, look,       the steps of a record on several nodes, of which this is one. `open` raises the mark, `look` only
--   accept, settle          checks what a write checks, `accept` writes, and `settle` does so for a reader
--
-- The record is a hash: number, handover and nonce are its mark; value, version and by (the token, as text) what was
-- written. What was removed has no value. On one of several nodes also: ballot, the token that agreed to it last, and write, which tells two writes of one
-- version apart.
local lock, base, record = KEYS[1], KEYS[2], KEYS[3]
local verb, nonce, number, handover = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local call = redis.call

-- What a gate asks for each request: may a token pass whose mark stands and whose lease lives? Nothing is kept behind that mark,
-- and there is nothing to change, so that nothing is written either. Only a primary may say so: one that was demoted may not have
-- heard that the lease is over, and does not take the word that takes nothing away.
if verb == 'open' then
  local held = call('GETRANGE', lock, '0', '33')
  if held == nonce .. ':' .. ARGV[3] .. ':' or held == nonce .. '+' .. ARGV[3] .. ':' then
    local kept = redis.pcall('HMGET', record, 'nonce', 'number', 'handover', 'version', 'by', 'ballot')
    if kept[1] == nonce and kept[2] == ARGV[3] and kept[3] == ARGV[4] and not (kept[4] or kept[5] or kept[6])
      and call('HSTRLEN', record, 'value') == 0 then
      call('HDEL', record, '')
      return {'ok', false, false, false, false, false}
    end
  end
end

-- A token as its three parts; Rust makes one of them, because a sequence does not fit a number of Lua.
local function token(of_nonce, of_number, of_handover)
  return of_nonce .. ':' .. of_number .. ':' .. (of_handover or 0)
end

-- Nothing, or a mark, or a mark and what was written behind it: anything else is somebody else's.
local mark = call('HMGET', record, 'nonce', 'number', 'handover', 'version', 'by')
local marked = mark[1] and tonumber(mark[3]) and tonumber(mark[2])
local written = tonumber(mark[4] or '') and string.match(mark[5] or '', '^%x+:%d+:%d+$')
local length = call('HSTRLEN', record, 'value')
if length > 65536 or not written and (mark[4] or mark[5] or length > 0)
  or not marked and call('EXISTS', record) == 1 then
  return {'damaged'}
end
local function found()
  return {'ok', unpack(call('HMGET', record, 'value', 'version', 'by', 'ballot', 'write'))}
end
if verb == 'read' then
  return found()
elseif verb == 'holds' then
  return {'ok', call('HGET', record, 'value') and 1 or 0}
end

if mark[1] then
  local step = tonumber(mark[3])
  if marked == number and step == handover and mark[1] ~= nonce then
    return {'collision', token(mark[1], mark[2], mark[3])}
  end
  if number < marked or (number == marked and handover < step) then
    return {'below', token(mark[1], mark[2], mark[3])}
  end
end

-- Writes, and says whether it did: what the same token has written since then stays.
local function accept()
  local ballot = token(nonce, ARGV[3], ARGV[4])
  local there = call('HMGET', record, 'ballot', 'version', 'write')
  if there[1] == ballot then
    local newer = tonumber(there[2]) - tonumber(ARGV[6])
    if newer > 0 or (newer == 0 and there[3] > ARGV[8]) then
      return {'ok', 0}
    end
  end
  call('HSET', record, 'ballot', ballot, 'value', ARGV[5], 'version', ARGV[6], 'by', ARGV[7], 'write', ARGV[8])
  return {'ok', 1}
end

local function raise_mark()
  call('HSET', record, 'nonce', nonce, 'number', ARGV[3], 'handover', ARGV[4])
end

if verb == 'settle' then
  raise_mark()
  return accept()
end

-- The token's lease must live.
local held = call('GETRANGE', lock, 0, 63)
local holder, held_number
local alone = false
if held == 'ringfence:shared' or held == 'ringfence:permit' then
  local time = call('TIME')
  local ends, entry = call('ZSCORE', base .. 's', nonce), call('HGET', base .. 'h', nonce)
  if ends and entry and tonumber(ends) > time[1] * 1000 + math.floor(time[2] / 1000) then
    holder, held_number = nonce, string.match(entry, '^%d+')
  end
else
  holder, held_number = string.match(held, '^(%x+)[:+](%d+):')
  alone = true
end
if not holder then
  return {'over'}
elseif holder ~= nonce or tonumber(held_number) ~= number then
  return {tonumber(held_number) == number and 'collision' or 'over', token(holder, held_number)}
end

if verb == 'open' then
  raise_mark()
  return found()
end
if not mark[1] or tonumber(mark[2]) ~= number or tonumber(mark[3]) ~= handover then
  return {'unopened'}
end
if verb == 'look' then
  return found()
elseif verb == 'accept' then
  return accept()
elseif verb == 'remove' then
  -- Of one that holds alone, the first token is below all that may still pass: nothing is left for a mark to refuse.
  if alone and handover == 0 then
    call('DEL', record)
  else
    call('HDEL', record, 'value')
  end
  return {'ok'}
end
local version = call('HINCRBY', record, 'version', 1)
call('HSET', record, 'value', ARGV[5], 'by', token(nonce, ARGV[3], ARGV[4]))
return {'ok', version}
