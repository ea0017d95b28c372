-- KEYS: three of each thread, then the recency index unless it is elsewhere.
-- ARGV: msgpack {units, threads, ttl, waits}, then rows and values as the units number them.
-- Of a value: its channel and version, those of what it is a change to or '', that one's stamp, and its number in ARGV if
-- it comes with this call, else 0.
-- Answers {outcomes, updated_at of each thread or ''}, or 'base' where a value was sent as a change to what is not there.

local units, threads, ttl, waits = unpack(unpack_all(ARGV[1]))
local recency = #KEYS % 3 == 1 and KEYS[#KEYS]
local PUT, WRITES, MOVE = 1, 2, 3

-- The values that come with this call, by their number in ARGV.
local sent = {}

local function is_base(rows, ns, blob)
  local base = call('HGET', rows, 'b' .. ns .. blob[2])
  return base and stamp_of(base) == blob[3]
end

-- What its value is a change to came with this call and was refused, or is stored otherwise.
local function without_base(rows, ns, number)
  return whole(rows, ARGV[number], function(version)
    number = number and sent[number][4]
    if number == 0 then
      number = nil
    end
    return number and ARGV[number] or call('HGET', rows, 'b' .. ns .. version)
  end)
end

local function told(status, head)
  if head then
    return {status, '', head[1], head[2], head[3]}
  end
  return {status, ''}
end

local function move_head(rows, index, ns, old, id, device, at, newest, root)
  if find(ns, ':', 1, true) then
    local before = old and facts(call('HGET', rows, 'c' .. old[1] .. ns))[2]
    if before then
      call('ZREM', index, 'r' .. before .. ns)
    end
    if root then
      call('ZADD', index, 0, 'r' .. root .. ns)
    end
    if not old then
      call('ZADD', index, 0, 't' .. ns)
    end
  elseif not old then
    call('ZADD', index, 0, 's' .. ns)
  end
  call('HSET', rows, 'h' .. ns, pack({id, device, at}))
  if not newest or tonumber(at) >= tonumber(newest) then
    call('HSET', rows, 'u', at)
  elseif old and tonumber(old[3]) == tonumber(newest) then
    -- The head that was moved last went back in time, so it may be another one's turn.
    call('HSET', rows, 'u', newest_of(rows, index))
  end
end

local function grew_from(rows, ns, ancestor, id)
  local seen = {}
  while id and not seen[id] do
    if id == ancestor then
      return true
    end
    seen[id] = true
    local row = call('HGET', rows, 'c' .. id .. ns)
    id = row and facts(row)[1]
  end
  return false
end

local function is_late(rows, stone, ns, origin)
  if not origin then
    return false
  end
  local through = call('HGET', stone, 'through')
  return not less(through, origin) and call('HEXISTS', rows, 'c' .. origin .. ns) == 0
end

local function put(rows, index, stone, unit)
  local _, _, ns, id, parent, root, fenced, policy, over, whole, device, at, first, blobs, is_root = unpack(unit, 1, 15)
  local there = call('HMGET', rows, 'h' .. ns, 'c' .. id .. ns, 'u', 'n')
  local head = there[1] and unpack_all(there[1])
  if there[2] then
    if fenced and (policy == 'branch' or policy == 'beside') and head and head[1] ~= id
        and not grew_from(rows, ns, id, head[1]) then
      return told('branched', head)
    end
    return {'stored', ''}
  end
  local refusal
  if call('EXISTS', stone) == 1 and (is_root and call('HEXISTS', stone, 'f' .. id) == 1
      or is_late(rows, stone, ns, parent) or is_late(rows, stone, '\0', root)) then
    refusal = {'deleted', call('HGET', stone, 'at')}
  end
  local overtaken = fenced and head and head[1] ~= (over or parent)
  if not refusal and overtaken and policy == 'raise' then
    refusal = told('conflict', head)
  end
  if not refusal and parent and not whole and call('HEXISTS', rows, 'c' .. parent .. ns) == 0 then
    refusal = told('orphaned', head)
  end
  if refusal then
    for _, field in ipairs(fields_of_writes(rows, id, ns)) do
      call('HDEL', rows, field)
    end
    return refusal
  end
  local placed, records = '+', {}
  for n, blob in ipairs(blobs) do
    records[n] = ARGV[first + n]
    if blob[4] > 0 and not is_base(rows, ns, blob) then
      records[n] = without_base(rows, ns, first + n)
      placed = ''
    end
  end
  call('HSET', rows, 'c' .. id .. ns, ARGV[first], 'n', there[4] or at)
  call('ZADD', index, 0, 'c' .. id .. ns)
  if is_root and not parent then
    call('ZADD', index, 0, 'f' .. id)
  end
  for n, blob in ipairs(blobs) do
    if call('HSETNX', rows, 'b' .. ns .. blob[1], records[n]) == 0 then
      placed = ''
    end
  end
  if policy == 'beside' or overtaken and policy == 'branch' then
    local answer = told('branched', head)
    answer[2] = placed
    return answer
  end
  move_head(rows, index, ns, head, id, device, at, there[3], root)
  return {'stored', placed}
end

local function put_writes(rows, stone, unit)
  local _, _, ns, id, fenced, mark, first, names = unpack(unit, 1, 8)
  local key = id .. ns
  local is_stored = call('HEXISTS', rows, 'c' .. key) == 1
  if not is_stored then
    local through = call('HGET', stone, 'through')
    if through and not less(through, id) then
      return {'deleted', call('HGET', stone, 'at')}
    end
  end
  if fenced then
    local head = head_of(rows, ns)
    local clash = is_stored and not (head and head[1] == id)
    for n, name in ipairs(names) do
      local there = not name[2] and call('HGET', rows, 'w' .. key .. name[1])
      clash = clash or there and there ~= ARGV[first + n - 1]
    end
    if clash then
      return told('conflict', head)
    end
  end
  local list = call('HGET', rows, 'W' .. key)
  list = list and unpack_all(list) or {mark}
  local changed = false
  for n, name in ipairs(names) do
    local field, row = 'w' .. key .. name[1], ARGV[first + n - 1]
    local there = call('HGET', rows, field)
    if not there then
      list[#list + 1] = name[1]
    end
    if not there or name[2] and there ~= row then
      call('HSET', rows, field, row)
      changed = true
    end
  end
  if changed then
    list[1] = mark
    call('HSET', rows, 'W' .. key, pack(list))
  end
  return {'stored', ''}
end

local function move(rows, index, unit)
  local _, _, ns, id, over, device, at = unpack(unit, 1, 7)
  local head = head_of(rows, ns)
  if head and head[1] == id then
    return {'stored', ''}
  end
  local row = call('HGET', rows, 'c' .. id .. ns)
  if not row then
    return told('orphaned', head)
  end
  if head and head[1] ~= over then
    return told('conflict', head)
  end
  move_head(rows, index, ns, head, id, device, at, call('HGET', rows, 'u'), facts(row)[2])
  return {'stored', ''}
end

for n = 1, #threads do
  tidy(KEYS[3 * n - 2], KEYS[3 * n - 1])
end

-- Nothing is written before all is known to fit.
for _, unit in ipairs(units) do
  if unit[1] == PUT then
    for number, blob in ipairs(unit[14]) do
      sent[unit[13] + number] = blob
      if blob[2] ~= '' and blob[4] == 0 and not is_base(KEYS[3 * unit[2] - 2], unit[3], blob) then
        return 'base'
      end
    end
  end
end

local outcomes, puts = {}, {}
for n, unit in ipairs(units) do
  local first = 3 * unit[2] - 2
  local rows, index, stone = KEYS[first], KEYS[first + 1], KEYS[first + 2]
  if unit[1] == PUT then
    outcomes[n] = put(rows, index, stone, unit)
    puts[unit[2]] = true
  elseif unit[1] == WRITES then
    outcomes[n] = put_writes(rows, stone, unit)
  else
    outcomes[n] = move(rows, index, unit)
    puts[unit[2]] = true
  end
end

local times = {}
for n, thread in ipairs(threads) do
  local rows, index = KEYS[3 * n - 2], KEYS[3 * n - 1]
  times[n] = ''
  if puts[n] then
    local known = call('HMGET', rows, 'u', 'n')
    times[n] = known[1] or known[2] or ''
    if recency and times[n] ~= '' then
      call('ZADD', recency, times[n], thread)
    end
  end
  keep(rows, index, ttl)
  if waits then
    change(rows)
  end
end
return {outcomes, times}
