-- Every change to a lock, in one script, so that each is one step for everybody. A call may bring several changes to several
-- locks; each of them stands for itself, and fails for itself.
--
-- KEYS: for each change the lock, and the prefix of what stands beside it, which is in the same slot.
-- ARGV: for each change the verb, the attempt's nonce in 16 hexadecimal digits, the TTL in milliseconds, and two more; for
-- `acquire`, for `queue`, which joins the line where it cannot have the lock, and for `look`, by which those in line keep their
-- place, the mode and the entry: session:mode:ttl:pid:text; for `take`, by which one of several servers is asked for the lock, the
-- same with a colon and the least number behind the mode; for `mark`, the second step there, a number that takes the place of the
-- attempt's; for others nothing. The answer to `take` has the server's time beside the number.
--
-- The lock is a plain string, so that a client that knows only `SET NX PX` is kept out and keeps us out:
--   nonce:number:session:x:ttl:pid:text   held by one of us, exclusively; with `+` for the first `:` once somebody waits
--   ringfence:shared, ringfence:permit    held by several of us: h, s and l say by whom
--   anything else                         held by somebody else's client
-- Beside it:
--   t   the last grant number, and a mark where there is more to look at: a line, or attempts that were withdrawn
--   q   the line: nonce -> place      w   nonce -> since:session:mode:ttl:pid:text
--   h   nonce -> number:session:mode:ttl:pid:text      s   nonce -> end in ms      l   nonce -> limit of a permit
--   x   attempts that were withdrawn and must not come back: nonce -> until when in ms
--
-- A number is the server's time in microseconds, 16 digits until the year 2286, so that numbers compare as text.
--
-- What is given to the server stands as text, because a number would be printed as a fraction first.
local KEEP_MS = '3600000'
local ARGS = 5
-- For how long a turn stands that is given to a waiter, until it is renewed.
local OFFER_MS = '750'
local LINE_MAX = 10000
-- What the counter is, with its mark or without.
local NUMBER = '^%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%+?$'
local call = redis.call

-- The server's time, which stands still while a script runs, as a number of a grant.
local now
local function look_at_clock()
  local time = call('TIME')
  now = time[1] .. string.sub('00000' .. time[2], -6)
end

-- Tells a process, and says how many there are that heard it. In a cluster a script reaches only channels of its own slot, so
-- a process listens there for each lock that it waits for, and has a session of one digit more.
local function tell(base, session, what, member, number)
  local message = what .. ':' .. member .. ':' .. number
  if #session > 16 then
    return call('SPUBLISH', base .. 'c:' .. session, message)
  end
  return call('PUBLISH', 'ringfence:' .. session, message)
end

-- How many changes are made, and their answers.
local made, answers = 0, {}
-- The last number of the lock that is looked at, as far as it is known.
local last

-- The ways that nearly every change goes, up to the first change that has to go the long way. They are one function, and in
-- one piece, because a script is run anew for every call: each function that it defines costs as much as a command.
local function short_ways()
  while 2 * made < #KEYS do
    local lock, base = KEYS[2 * made + 1], KEYS[2 * made + 2]
    local verb, nonce, ttl, mode, entry = unpack(ARGV, ARGS * made + 1, ARGS * made + ARGS)
    local answer, asked
    last = nil
    if verb == 'take' then
      verb = 'acquire'
      mode, asked = string.match(mode, '^(%w+):(%d*)$')
    end

    if verb == 'release' then
      local held = call('GETRANGE', lock, '0', '16')
      if held == nonce .. ':' then
        answer = call('DEL', lock)
      elseif held == nonce .. '+' then
        -- Gives the lock to the first in line, where that one wants it alone too and hears of it.
        local head = call('ZRANGE', base .. 'q', '0', '0')[1]
        local waits = head and string.match(call('HGET', base .. 'w', head) or '', '^%d+:(.*)$')
        local session, lasts = string.match(waits or '', '^(%x+):x:([1-9]%d*):')
        if not session or #head ~= #nonce then
          return
        end
        look_at_clock()
        last = call('SET', base .. 't', now .. '+', 'PX', KEEP_MS, 'GET') or ''
        if #last ~= 17 or string.sub(last, 1, 16) >= now then
          return
        end
        -- Whatever becomes of this turn, nobody else is given its number.
        last = now
        local heard = tell(base, session, 'turn', head, now)
        call('ZREM', base .. 'q', head)
        call('HDEL', base .. 'w', head)
        if heard == 0 then
          -- Its process is gone: the long way goes on to the next one.
          return
        end
        lasts = tonumber(lasts) < tonumber(OFFER_MS) and lasts or OFFER_MS
        call('SET', lock, head .. '+' .. now .. ':' .. waits, 'PX', lasts)
        answer = 1
      end

    elseif verb == 'renew' then
      if call('GETRANGE', lock, '0', '15') == nonce then
        answer = call('PEXPIRE', lock, ttl)
      end

    elseif verb == 'look' then
      local holder, number = string.match(call('GETRANGE', lock, '0', '33'), '^(%x+)[:+](%d+):$')
      if holder == nonce then
        -- Its turn has come.
        call('PEXPIRE', lock, ttl)
        answer = number
      end

    elseif mode == 'x' then
      if not now then
        look_at_clock()
      end
      local number = now
      if asked and #asked == 16 and asked > now then
        if string.sub(asked, 1, 10) - string.sub(now, 1, 10) > 1 then
          -- It is ahead of the clock by so much that the counter is kept for longer.
          return
        end
        number = asked
      end
      if call('SET', lock, nonce .. ':' .. number .. ':' .. entry, 'NX', 'PX', ttl) then
        last = redis.pcall('SET', base .. 't', number, 'PX', KEEP_MS, 'GET')
        if last and (#last ~= 16 or last >= number) then
          -- Not before somebody in line, not with a number that is too low, and not where the counter is none.
          call('DEL', lock)
          last = type(last) == 'string' and last or nil
          if last and #last < 64 then
            -- It is as it was, also where it is for a person to see.
            call('SET', base .. 't', last, 'PX', KEEP_MS)
          else
            last = nil
          end
          return
        end
        answer = asked and {number, now} or number
      elseif verb == 'queue' then
        -- Joins the line behind one who has it alone and knows that there is a line.
        local held = call('GETRANGE', lock, '0', '2047')
        if string.sub(held, 17, 17) == '+' and string.sub(held, 1, 16) ~= nonce then
          last = call('GET', base .. 't')
          local line = call('ZCARD', base .. 'q')
          local tail = call('ZRANGE', base .. 'q', '-1', '-1', 'WITHSCORES')[2]
          if last and #last == 17 and line < LINE_MAX and not call('ZSCORE', base .. 'x', nonce)
            and call('ZADD', base .. 'q', 'NX', string.format('%.0f', (tail or 0) + 1), nonce) == 1 then
            call('HSET', base .. 'w', nonce, string.sub(now, 1, -4) .. ':' .. entry)
            call('PEXPIRE', base .. 'q', KEEP_MS)
            call('PEXPIRE', base .. 'w', KEEP_MS)
            answer = {'waits', line, string.sub(last, 1, 16), line, 0, held}
          end
        end
      end

    elseif verb == 'mark' then
      if not now then
        look_at_clock()
      end
      local marked = mode
      local taken, number = string.match(call('GETRANGE', lock, '0', '33'), '^(%x+):(%d+):$')
      if taken == nonce and number <= marked and marked <= now then
        last = call('SET', base .. 't', marked, 'PX', KEEP_MS, 'GET') or ''
        if last == number then
          call('SETRANGE', lock, '17', marked)
          answer = 1
        end
      end
    end

    if not answer then
      return
    end
    made = made + 1
    answers[made] = answer
  end
end

-- What fails here fails on the long way again, which says why.
pcall(short_ways)
if 2 * made == #KEYS then
  return answers
end
if not now then
  look_at_clock()
end

-- Everything else: the long way. The change that is made, with the number that is asked for, and what its lock holds: '' for
-- nothing.
local lock, base, verb, nonce, ttl, mode, entry, asked
local current = ''
local SHARED, PERMIT = 'ringfence:shared', 'ringfence:permit'

-- The last number, '' where there is none.
local function known_number()
  last = last or call('GET', base .. 't') or ''
  if last ~= '' and not string.match(last, NUMBER) then
    error({err = 'DAMAGED ' .. base .. 't holds no grant number'})
  end
  return string.sub(last, 1, 16)
end

-- A number above every earlier one of this lock, and not below the least: the server's clock, or one more than the last where that
-- went back.
local function next_number(least)
  last = known_number()
  last = last < now and now or string.format('%.0f', tonumber(last) + 1)
  if least and #least == 16 and least > last then
    last = least
  end
  known_number()
  return last
end

local function now_ms()
  return tonumber(string.sub(now, 1, -4))
end

-- For how long the last number is kept. One that is ahead of the clock stays until the clock has passed it, because numbers go on
-- from the clock afterwards.
local function keep_ms()
  return string.format('%.0f', KEEP_MS + math.max(0, math.floor((tonumber(last) or 0) / 1000) - now_ms()))
end

-- Leaves the last number behind, with its mark.
local function done(answer)
  last = last or call('GET', base .. 't') or ''
  if last ~= '' and not string.match(last, NUMBER) then
    -- It is for a person to see, and tells of itself when a number is needed.
    return answer
  end
  last = string.sub(last, 1, 16)
  local mark = call('EXISTS', base .. 'q', base .. 'x') > 0 and '+' or ''
  if last == '' and mark ~= '' then
    -- A lock that was never used, and an attempt at it that was withdrawn before it came.
    last = now
  end
  if last ~= '' then
    call('SET', base .. 't', last .. mark, 'PX', keep_ms())
  end
  return answer
end

local function look()
  current = call('GETRANGE', lock, 0, 2047)
  if current == '' and call('EXISTS', lock) == 1 then
    current = '?'
  end
end

local function is_group()
  return current == SHARED or current == PERMIT
end

local function end_group_in(ms)
  call('PEXPIRE', lock, ms)
  -- They end a little later than the lock, which says whether they count.
  for _, key in ipairs({'h', 's', 'l'}) do
    call('PEXPIRE', base .. key, ms + 1000)
  end
end

local function leave_group(member)
  call('HDEL', base .. 'h', member)
  call('ZREM', base .. 'l', member)
  local held_until = call('ZREM', base .. 's', member) == 1
  local longest = call('ZRANGE', base .. 's', -1, -1, 'WITHSCORES')[2]
  if longest then
    -- Who knows nothing of groups waits for the lock's own end.
    end_group_in(math.max(1, longest - now_ms()))
  elseif held_until or call('EXISTS', base .. 'h') == 0 then
    -- A server that evicts may have evicted until when they hold: then it is over with the last of whom it says who it is.
    call('DEL', lock)
    current = ''
  end
end

-- Ends what has lapsed of a group. A lease of one holder is ended by the server itself.
local function settle()
  look()
  if is_group() then
    for _, member in ipairs(call('ZRANGEBYSCORE', base .. 's', '-inf', now_ms())) do
      leave_group(member)
    end
  end
end

-- Whether the nonce has the lock; with its number.
local function held_number()
  if is_group() then
    local holder = call('HGET', base .. 'h', nonce)
    return holder and string.match(holder, '^%d+')
  end
  local holder, number = string.match(current, '^(%x+)[:+](%d+):')
  return holder == nonce and number
end

local function extend_group(member, ms)
  call('ZADD', base .. 's', now_ms() + ms, member)
  if call('PTTL', lock) <= ms then
    end_group_in(ms)
  end
end

local function join_group(member, mode, number, entry, ms)
  if current == '' then
    current = mode == 's' and SHARED or PERMIT
    call('SET', lock, current, 'PX', ms)
    call('DEL', base .. 'h', base .. 's', base .. 'l')
  end
  call('HSET', base .. 'h', member, number .. ':' .. entry)
  if current == PERMIT then
    call('ZADD', base .. 'l', string.sub(mode, 2), member)
  end
  extend_group(member, ms)
end

local function admits(mode)
  if current == '' then
    return true
  elseif mode == 's' then
    return current == SHARED
  elseif mode == 'x' or current ~= PERMIT then
    return false
  end
  local least = call('ZRANGE', base .. 'l', 0, 0, 'WITHSCORES')[2]
  local limit = math.min(tonumber(string.sub(mode, 2)), tonumber(least) or math.huge)
  return call('ZCARD', base .. 's') < limit
end

-- Writes into a lease of one holder that somebody waits, so that its release looks further than at the lease.
local function mark_line()
  if not is_group() and string.match(current, '^%x+:%d+:%x+:x:') and call('EXISTS', base .. 'q') == 1 then
    call('SETRANGE', lock, '16', '+')
  end
end

local function grant(member, mode, entry, ms, least)
  local number = next_number(least)
  if mode == 'x' then
    current = member .. ':' .. number .. ':' .. entry
    call('SET', lock, current, 'PX', ms)
    mark_line()
  else
    join_group(member, mode, number, entry, ms)
  end
  return number
end

local function leave_line(member)
  call('HDEL', base .. 'w', member)
  return call('ZREM', base .. 'q', member)
end

-- Gives the lock to the first in line for as long as it fits beside the holders. One whose process is gone is passed over.
local function serve_line()
  -- Nobody fits beside one that has it alone.
  while current == '' or is_group() do
    local head = call('ZRANGE', base .. 'q', 0, 0)[1]
    if not head then
      return
    end
    local entry = string.match(call('HGET', base .. 'w', head) or '', '^%d+:(.*)$')
    local session, mode, ttl = string.match(entry or '', '^(%x+):([xsp]%d*):(%d+):')
    if session and not (string.match(mode, '^[xs]$') or string.match(mode, '^p[1-9]')) then
      session = nil
    end
    if session and not admits(mode) then
      return
    end
    leave_line(head)
    if session then
      local number = grant(head, mode, entry, math.min(tonumber(ttl), tonumber(OFFER_MS)))
      if tell(base, session, 'turn', head, number) == 0 then
        if mode == 'x' then
          call('DEL', lock)
          current = ''
        else
          leave_group(head)
        end
      end
    end
  end
end

-- The number of the lease, where the nonce has it; from now on for its whole TTL, however long it was offered for.
local function claim()
  local number = held_number()
  if number and is_group() then
    extend_group(nonce, ttl)
  elseif number then
    call('PEXPIRE', lock, ttl)
  end
  return number
end

-- The entries of up to so many holders.
local function holders(most)
  if not is_group() then
    return {current}
  end
  local entries = {}
  for _, member in ipairs(call('ZRANGE', base .. 's', 0, most - 1)) do
    -- A server that evicts may have evicted what says who it is.
    table.insert(entries, member .. ':' .. (call('HGET', base .. 'h', member) or ''))
  end
  return entries
end

-- In how many milliseconds the lease of one of us ends that has it alone. Zero where that does not say when to look next.
local function ends_in()
  if is_group() or not string.match(current, '^%x+[:+]%d+:%x+:x:') then
    return 0
  end
  return math.max(0, call('PTTL', lock))
end

-- The answer to one that has the lock.
local function granted(number)
  return done(asked and {number, now} or number)
end

local function change()
  if verb == 'acquire' or verb == 'queue' or verb == 'look' then
    settle()
    local number = claim()
    if number then
      -- The answer to this attempt was lost, or its turn has come.
      return granted(number)
    end
    if call('ZSCORE', base .. 'x', nonce) then
      return done({'withdrawn'})
    end
    serve_line()
    number = claim()
    if number then
      return granted(number)
    end
    if verb == 'look' and not call('ZSCORE', base .. 'q', nonce) then
      return done({'gone'})
    end
    local line = call('ZCARD', base .. 'q')
    if line == 0 and admits(mode) then
      return granted(grant(nonce, mode, entry, ttl, asked))
    end
    if verb == 'acquire' then
      return done({'busy', line, '0', unpack(holders(8))})
    end
    if not call('ZSCORE', base .. 'q', nonce) then
      if line >= LINE_MAX then
        return done({'full'})
      end
      local last = call('ZRANGE', base .. 'q', -1, -1, 'WITHSCORES')[2]
      call('ZADD', base .. 'q', (last or 0) + 1, nonce)
      call('HSET', base .. 'w', nonce, string.format('%.0f', now_ms()) .. ':' .. entry)
    else
      -- It is told of the others.
      line = line - 1
    end
    mark_line()
    call('PEXPIRE', base .. 'q', KEEP_MS)
    call('PEXPIRE', base .. 'w', KEEP_MS)
    -- A turn with this number, or an earlier one, is over: it was told before this answer.
    last = known_number()
    last = last ~= '' and last or now
    local rank = call('ZRANK', base .. 'q', nonce)
    return done({'waits', line, last, rank, ends_in(), unpack(holders(8))})
  end

  if verb ~= 'inspect' then
    -- A server that is out of memory refuses a script's first write, if that could need some, and none after it. What keeps
    -- a lease or gives it back must not fail for that, so it begins with a write that needs none.
    call('HDEL', base .. 'w', '')
  end

  if verb == 'release' or verb == 'withdraw' then
    if verb == 'withdraw' then
      for _, over in ipairs(call('ZRANGEBYSCORE', base .. 'x', '-inf', now_ms())) do
        call('ZREM', base .. 'x', over)
      end
      -- Nothing is on its way for longer than the mark of the last number is kept, which tells others to look here.
      local lasts = math.min(ttl, KEEP_MS)
      call('ZADD', base .. 'x', string.format('%.0f', now_ms() + lasts), nonce)
      if call('PTTL', base .. 'x') < lasts then
        call('PEXPIRE', base .. 'x', lasts)
      end
    end
    settle()
    local held = held_number()
    if held and is_group() then
      leave_group(nonce)
    elseif held then
      call('DEL', lock)
      current = ''
    else
      leave_line(nonce)
    end
    serve_line()
    return done(held and 1 or 0)
  end

  if verb == 'renew' then
    settle()
    if not held_number() then
      return 0
    elseif is_group() then
      extend_group(nonce, ttl)
      -- Among how many at most it is held, for those who count votes.
      return tonumber(call('ZSCORE', base .. 'l', nonce) or 1)
    end
    return call('PEXPIRE', lock, ttl)
  end

  if verb == 'mark' then
    settle()
    local marked, number = mode, held_number()
    if not number then
      return 0
    end
    last = string.sub(last or call('GET', base .. 't') or '', 1, 16)
    -- Whether nobody else can have been given this number, or a higher one, by a mark on this server.
    local is_new = last < marked or (last == marked and number == marked)
    -- Those who are told the same number would mark the same one next, and only one of them could have it.
    last = is_new and marked or string.format('%.0f', tonumber(last) + 1)
    if is_group() then
      local taken = string.match(call('HGET', base .. 'h', nonce), '^%d+:(.*)$')
      call('HSET', base .. 'h', nonce, marked .. ':' .. taken)
    else
      call('SETRANGE', lock, '17', marked)
    end
    return done(is_new and 1 or tonumber(last))
  end

  if verb == 'downgrade' then
    settle()
    local number = held_number()
    if not number then
      return 0
    end
    if not is_group() then
      local session, rest = string.match(current, '^%x+[:+]%d+:(%x+):x:(.*)$')
      call('DEL', lock)
      current = ''
      join_group(nonce, 's', number, session .. ':s:' .. rest, ttl)
    else
      extend_group(nonce, ttl)
    end
    serve_line()
    return done(1)
  end

  if verb == 'evict' then
    settle()
    local session
    if is_group() then
      local holder = call('HGET', base .. 'h', nonce)
      if not holder then
        return 0
      end
      session = string.match(holder, '^%d+:(%x+):')
      leave_group(nonce)
    elseif held_number() then
      session = string.match(current, '^%x+[:+]%d+:(%x+):')
      call('DEL', lock)
      current = ''
    elseif current ~= '' and string.sub(redis.sha1hex(current), 1, 16) == nonce then
      -- Somebody else's client has it, and is known by what it wrote.
      call('DEL', lock)
      current = ''
    else
      return 0
    end
    if session then
      tell(base, session, 'lost', nonce, '0')
    end
    serve_line()
    return done(1)
  end

  if verb == 'inspect' then
    settle()
    local held, line = {}, {}
    if is_group() then
      local ends = call('ZRANGE', base .. 's', 0, -1, 'WITHSCORES')
      for index = 1, #ends, 2 do
        table.insert(held, ends[index] .. ':' .. (call('HGET', base .. 'h', ends[index]) or ''))
        table.insert(held, ends[index + 1] - now_ms())
      end
    elseif current ~= '' then
      -- What only looks like ours is somebody else's, and known by what it is.
      local id = string.match(current, '^([%da-f]+)[:+]%d+:%x+:x:%d+:')
      local ours = id and #id == 16 and string.find(id, '[^0]')
      table.insert(held, ours and current or string.sub(redis.sha1hex(current), 1, 16))
      table.insert(held, call('PTTL', lock))
    end
    for _, member in ipairs(call('ZRANGE', base .. 'q', 0, -1)) do
      table.insert(line, call('HGET', base .. 'w', member) or '')
    end
    return {now, held, line}
  end

  error('unknown verb ' .. verb)
end

local first = made
while 2 * made < #KEYS do
  lock, base = KEYS[2 * made + 1], KEYS[2 * made + 2]
  verb, nonce, ttl, mode, entry = unpack(ARGV, ARGS * made + 1, ARGS * made + ARGS)
  ttl, asked = tonumber(ttl), nil
  if verb == 'take' then
    verb = 'acquire'
    mode, asked = string.match(mode, '^(%w+):(%d*)$')
  end
  if made > first then
    last = nil
  end
  local is_made, answer = pcall(change)
  if not is_made then
    -- What failed is one change's affair: the others are answered.
    local says = type(answer) == 'table' and answer.err or tostring(answer)
    -- The server's own errors begin with a code, where nothing says before it in which line of this script they came.
    answer = {err = string.match(says, '%u%u%u+ .*') or 'DAMAGED ' .. says}
    for key, kind in pairs({[''] = 'string', t = 'string', q = 'zset', w = 'hash', h = 'hash', s = 'zset', l = 'zset', x = 'zset'}) do
      key = key == '' and lock or base .. key
      local found = redis.pcall('TYPE', key).ok
      if found and found ~= 'none' and found ~= kind then
        answer = {err = 'DAMAGED ' .. key .. ' is a ' .. found .. ' and no ' .. kind}
      end
    end
    -- The next one of this lock looks at everything.
    last = last or redis.pcall('GET', base .. 't') or now
    last = last == '' and now or last
    if type(last) == 'string' and string.match(last, NUMBER) then
      last = string.sub(last, 1, 16)
      redis.pcall('SET', base .. 't', last .. '+', 'PX', keep_ms())
    end
  end
  made = made + 1
  answers[made] = answer
end
return answers
