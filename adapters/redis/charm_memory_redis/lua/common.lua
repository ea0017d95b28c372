-- Shared by all scripts. What is where, with ids as parts (keys.py):
--
--   rows, a hash      c id ns           a checkpoint: msgpack [[parent, root, run, format], [channel version, …], […]]
--                     b ns channel ver  a value: a stamp, then msgpack [[type, base], data]
--                     w id ns task idx  a pending write: msgpack [[channel, …], data]
--                     W id ns           msgpack [mark, task idx, …]: the writes of a checkpoint
--                     h ns              msgpack [id, device, moved_at]: the head
--                     n, u              created_at and updated_at of the thread
--   index, a zset     c id ns           checkpoints in their order
--                     f id              those of the root graph without a parent
--                     s ns, t ns        namespaces with a head: without and with a colon
--                     r root ns         of those with a colon, by what their head was made under
--   tombstone, a hash at, through, f id
--
-- Times are texts: numbers of Lua lose nothing of them, but what Redis makes of numbers does.

local call = redis.call
local pack, unpack_at, unpack_all = cmsgpack.pack, cmsgpack.unpack_one, cmsgpack.unpack
local byte, sub, find = string.byte, string.sub, string.find

-- The server may have evicted one of the two keys; what is left of such a thread is nothing to go on with.
local function tidy(rows, index)
  if call('HEXISTS', rows, 'n') ~= call('EXISTS', index) then
    call('UNLINK', rows, index)
  end
end

-- All keys of a thread end at once, or never.
local function keep(rows, index, ttl)
  if ttl == '' then
    if call('PERSIST', rows) == 1 then
      call('PERSIST', index)
    end
    return
  end
  local now = call('TIME')
  local at = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + ttl)
  call('PEXPIREAT', rows, at)
  call('PEXPIREAT', index, at)
end

-- WAIT counts from the connection's last change; a repeated call makes none of its own. A full server lets nothing be
-- added before something was removed.
local function change(rows)
  call('HDEL', rows, 'z')
  call('HSET', rows, 'z', '')
  call('HDEL', rows, 'z')
end

-- `<` would follow the server's locale.
local function less(a, b)
  local n = math.min(#a, #b)
  for i = 1, n do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

-- Where the first part ends.
local function part_end(joined)
  local at = 0
  repeat
    at = find(joined, '\0', at + 1, true)
  until byte(joined, at + 1) ~= 255
  return at
end

-- [parent, root, run, format]
local function facts(row)
  local _, found = unpack_at(row, 1)
  return found
end

-- [channel version, …]
local function versions(row)
  local next = unpack_at(row, 1)
  local _, found = unpack_at(row, next)
  return found
end

local function head_of(rows, ns)
  local head = call('HGET', rows, 'h' .. ns)
  return head and unpack_all(head)
end

-- When one of the heads moved last; nil if there is none. `heads` are those to be, by namespace, false for none.
local function newest_of(rows, index, heads)
  local newest
  for _, kind in ipairs({'s', 't'}) do
    for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. kind, '(' .. kind .. '\255')) do
      local ns = sub(member, 2)
      local head = heads and heads[ns]
      if head == nil then
        head = head_of(rows, ns)
      end
      if head and (not newest or tonumber(head[3]) > tonumber(newest)) then
        newest = head[3]
      end
    end
  end
  return newest
end

-- The bytes before a value's msgpack: how many, then what it is known by.
local function stamp_of(record)
  return sub(record, 1, byte(record, 1) + 1)
end

local function base_of(record)
  local _, found = unpack_at(record, byte(record, 1) + 2)
  return found[2]
end

-- charm_checkpoint.delta
local function apply(base, change)
  local _, _, head, start, length, rest = struct.unpack('>I4I4I4I4I4I4', change)
  local middle = 24 + head
  return sub(change, 25, middle) .. sub(base, start + 1, start + length) .. sub(change, middle + 1)
    .. sub(base, #base - rest + 1)
end

local function packed_bytes(data)
  return '\219' .. struct.pack('>I4', #data) .. data
end

-- A value that is stored as a change, as one that is built on nothing; `record_of` finds what it is built on.
local function whole(rows, record, record_of)
  -- As wire.py writes it: SHA-1 and length are those of the value, below it are no changes and no bytes of them.
  local stamp = sub(record, 1, 25) .. struct.pack('>I2I4', 0, 0)
  local next, told = unpack_at(record, byte(record, 1) + 2)
  local type = told[1]
  local changes = {}
  while told[2] ~= '' do
    local _, change = unpack_at(record, next)
    changes[#changes + 1] = change
    record = record_of(told[2])
    if not record then
      error('-CORRUPT ' .. rows .. ': a value is missing that another one is built on', 0)
    end
    next, told = unpack_at(record, byte(record, 1) + 2)
  end
  local _, data = unpack_at(record, next)
  for n = #changes, 1, -1 do
    data = apply(data, changes[n])
  end
  return stamp .. '\146\146' .. packed_bytes(type) .. packed_bytes('') .. packed_bytes(data)
end

-- {row, …}
local function writes_of(rows, id, ns)
  local list = call('HGET', rows, 'W' .. id .. ns)
  local found = {}
  if list then
    list = unpack_all(list)
    for n = 2, #list do
      found[n - 1] = call('HGET', rows, 'w' .. id .. ns .. list[n])
    end
  end
  return found
end

-- What the writes of a checkpoint are stored in.
local function fields_of_writes(rows, id, ns)
  local list = call('HGET', rows, 'W' .. id .. ns)
  if not list then
    return {}
  end
  local fields = unpack_all(list)
  fields[1] = 'W' .. id .. ns
  for n = 2, #fields do
    fields[n] = 'w' .. id .. ns .. fields[n]
  end
  return fields
end

-- Adds the values of a checkpoint to `out`, with what they are built on, each once; of what is held only its name.
local function add_values(rows, ns, wanted, held, seen, out)
  local size = 0
  for _, version in ipairs(wanted) do
    while version ~= '' do
      local field = 'b' .. ns .. version
      if seen[field] then
        break
      end
      seen[field] = true
      local record = call('HGET', rows, field)
      if not record then
        break
      end
      out[#out + 1] = field
      if held[field] and held[field] == stamp_of(record) then
        out[#out + 1] = ''
        break
      end
      out[#out + 1] = record
      size = size + #record
      version = base_of(record)
    end
  end
  return size
end

-- {id ns, row, head, writes, sends}
local function entry(rows, id, ns, row, head, values)
  local writes, sends = {}, {}
  if values then
    writes = writes_of(rows, id, ns)
    local told = facts(row)
    if told[4] < 4 and told[1] then
      sends = writes_of(rows, told[1], ns)
    end
  end
  return {id .. ns, row, head or '', writes, sends}
end

-- Of the recency index, what comes behind a score and thread ('' for none): {thread, score, …}, the greatest score first.
local function recent(index, score, thread, limit)
  local start = 0
  if score ~= '' then
    if tonumber(call('ZSCORE', index, thread) or 'nan') == tonumber(score) then
      start = call('ZREVRANK', index, thread) + 1
    else
      start = call('ZCOUNT', index, '(' .. score, '+inf')
      while true do
        local next = call('ZREVRANGE', index, start, start, 'WITHSCORES')
        if #next == 0 or tonumber(next[2]) ~= tonumber(score) or less(next[1], thread) then
          break
        end
        start = start + 1
      end
    end
  end
  return call('ZREVRANGE', index, start, start + limit - 1, 'WITHSCORES')
end

-- {created_at, updated_at, {ns, id, device, at, …}, root head's row or '', its writes' channels}, or what is left of
-- that in a thread without heads: {} if nothing is.
local function listed(rows, index)
  tidy(rows, index)
  if call('EXISTS', index) == 0 then
    return {}
  end
  local heads = {}
  for _, kind in ipairs({'s', 't'}) do
    for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. kind, '(' .. kind .. '\255')) do
      local ns = sub(member, 2)
      local head = head_of(rows, ns)
      for _, each in ipairs({ns, head[1], head[2], head[3]}) do
        heads[#heads + 1] = each
      end
    end
  end
  local root, row, channels = head_of(rows, '\0'), '', {}
  if root then
    row = call('HGET', rows, 'c' .. root[1] .. '\0')
    for n, write in ipairs(writes_of(rows, root[1], '\0')) do
      channels[n] = facts(write)[1]
    end
  end
  return {call('HGET', rows, 'n'), call('HGET', rows, 'u') or '', heads, row, channels}
end

-- Rows and index of a thread that the recency index named, where all keys are on one server: as keys.py names them.
local function keys_of(prefix, thread)
  local tag = string.gsub(thread, '[^ -$&-z|~]', function(letter)
    return string.format('%%%02X', byte(letter))
  end)
  local place = prefix .. ':{' .. (tag ~= '' and tag or '%') .. '}:'
  return place .. 'h', place .. 'i'
end
