-- KEYS: rows, index, then the recency index unless it is elsewhere. ARGV: thread, msgpack [[ns, [id, …]], …], ttl.
-- Answers {how many were removed, updated_at or '' if no checkpoint is left}.

local rows, index = KEYS[1], KEYS[2]
tidy(rows, index)

local function all_of(ns)
  local found = {}
  for _, member in ipairs(call('ZRANGEBYLEX', index, '[c', '(c\255')) do
    if sub(member, part_end(member) + 1) == ns then
      found[#found + 1] = member
    end
  end
  return found
end

-- Values that only removed checkpoints name. What is built on one of them becomes whole first.
local function drop_values(ns, left, candidates)
  local needed = {}
  for _, member in ipairs(left) do
    for _, version in ipairs(versions(call('HGET', rows, member))) do
      needed[version] = true
    end
  end
  local doomed = {}
  for version in pairs(candidates) do
    doomed[version] = not needed[version] or nil
  end
  if not next(doomed) then
    return
  end
  for version in pairs(needed) do
    local field = 'b' .. ns .. version
    local record = call('HGET', rows, field)
    if record and doomed[base_of(record)] then
      call('HSET', rows, field, whole(record, function(base)
        return call('HGET', rows, 'b' .. ns .. base)
      end))
    end
  end
  for version in pairs(doomed) do
    call('HDEL', rows, 'b' .. ns .. version)
  end
end

local function move_head(ns, head, gone, left)
  local kind = find(ns, ':', 1, true) and 't' or 's'
  local root = gone[head[1]][2]
  if kind == 't' and root then
    call('ZREM', index, 'r' .. root .. ns)
  end
  local id, seen = gone[head[1]][1], {}
  while id and gone[id] and not seen[id] do
    seen[id] = true
    id = gone[id][1]
  end
  local member = id and 'c' .. id .. ns
  local row = member and call('HGET', rows, member)
  if not row then
    member = left[#left]
    row = member and call('HGET', rows, member)
  end
  if not row then
    call('HDEL', rows, 'h' .. ns)
    call('ZREM', index, kind .. ns)
    return
  end
  local told = unpack_all(row)
  id = sub(member, 2, part_end(member))
  call('HSET', rows, 'h' .. ns, pack({id, told[3][3], told[3][4]}))
  if kind == 't' and told[1][2] then
    call('ZADD', index, 0, 'r' .. told[1][2] .. ns)
  end
end

local removed, moved = 0, false
for _, each in ipairs(unpack_all(ARGV[2])) do
  local ns, ids = each[1], each[2]
  local gone, candidates, some = {}, {}, false
  for _, id in ipairs(ids) do
    local member = 'c' .. id .. ns
    local row = call('HGET', rows, member)
    if row then
      gone[id] = facts(row)
      for _, version in ipairs(versions(row)) do
        candidates[version] = true
      end
      call('HDEL', rows, member)
      call('ZREM', index, member)
      if ns == '\0' and not gone[id][1] then
        call('ZREM', index, 'f' .. id)
      end
      drop_writes(rows, id, ns)
      removed = removed + 1
      some = true
    end
  end
  if some then
    local left = all_of(ns)
    drop_values(ns, left, candidates)
    local head = head_of(rows, ns)
    if head and gone[head[1]] then
      move_head(ns, head, gone, left)
      moved = true
    end
  end
end

if call('EXISTS', index) == 0 then
  call('HDEL', rows, 'n', 'u')
  if KEYS[3] then
    call('ZREM', KEYS[3], ARGV[1])
  end
  return {removed, ''}
end
if moved then
  local newest = newest_of(rows, index)
  if newest then
    call('HSET', rows, 'u', newest)
  else
    call('HDEL', rows, 'u')
  end
end
local updated = call('HGET', rows, 'u') or call('HGET', rows, 'n')
if KEYS[3] then
  call('ZADD', KEYS[3], updated, ARGV[1])
end
keep(rows, index, ARGV[3])
return {removed, updated}
