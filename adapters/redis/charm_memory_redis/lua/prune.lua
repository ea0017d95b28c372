-- KEYS: rows, index, then the recency index unless it is elsewhere. ARGV: thread, msgpack [[ns, [id, …]], …], '1' if
-- somebody waits for replicas.
-- Answers {how many were removed, updated_at or '' if no checkpoint is left, updated_at before}. When the thread expires
-- stays as it is.

local rows, index = KEYS[1], KEYS[2]
tidy(rows, index)

-- What goes of each namespace, the values it names, and which checkpoints stay, in their order.
local plans, removed = {}, 0
for _, each in ipairs(unpack_all(ARGV[2])) do
  local ns, plan = each[1], {gone = {}, named = {}, left = {}}
  for _, id in ipairs(each[2]) do
    local row = not plan.gone[id] and call('HGET', rows, 'c' .. id .. ns)
    if row then
      plan.gone[id] = facts(row)
      for _, version in ipairs(versions(row)) do
        plan.named[version] = true
      end
      plans[ns] = plan
      removed = removed + 1
    end
  end
end
local before = call('HGET', rows, 'u') or call('HGET', rows, 'n') or ''
if removed == 0 then
  if ARGV[3] == '1' then
    change(rows)
  end
  return {0, before, before}
end
for _, member in ipairs(call('ZRANGEBYLEX', index, '[c', '(c\255')) do
  local length = part_end(member)
  local plan = plans[sub(member, length + 1)]
  if plan and not plan.gone[sub(member, 2, length)] then
    plan.left[#plan.left + 1] = member
  end
end

-- What is to be done. Nothing is changed before all of it is known, so that no error leaves a half.
local fields, members, records, added, heads = {}, {}, {}, {}, {}

local function drop_checkpoints(ns, gone)
  for id, told in pairs(gone) do
    fields[#fields + 1] = 'c' .. id .. ns
    members[#members + 1] = 'c' .. id .. ns
    if ns == '\0' and not told[1] then
      members[#members + 1] = 'f' .. id
    end
    for _, field in ipairs(fields_of_writes(rows, id, ns)) do
      fields[#fields + 1] = field
    end
  end
end

-- Values that only removed checkpoints name. What is built on one of them becomes whole.
local function drop_values(ns, named, left)
  local needed, doomed = {}, {}
  for _, member in ipairs(left) do
    for _, version in ipairs(versions(call('HGET', rows, member))) do
      needed[version] = true
    end
  end
  for version in pairs(named) do
    if not needed[version] then
      doomed[version] = true
      fields[#fields + 1] = 'b' .. ns .. version
    end
  end
  if not next(doomed) then
    return
  end
  for version in pairs(needed) do
    local record = call('HGET', rows, 'b' .. ns .. version)
    if record and doomed[base_of(record)] then
      records['b' .. ns .. version] = whole(rows, record, function(base)
        return call('HGET', rows, 'b' .. ns .. base)
      end)
    end
  end
end

local function move_head(ns, gone, left)
  local head = head_of(rows, ns)
  if not head or not gone[head[1]] then
    return
  end
  local kind = find(ns, ':', 1, true) and 't' or 's'
  local id, root = unpack(gone[head[1]], 1, 2)
  if kind == 't' and root then
    members[#members + 1] = 'r' .. root .. ns
  end
  local seen = {}
  while id and gone[id] and not seen[id] do
    seen[id] = true
    id = gone[id][1]
  end
  local member = id and not gone[id] and 'c' .. id .. ns
  local row = member and call('HGET', rows, member)
  if not row then
    member = left[#left]
    row = member and call('HGET', rows, member)
  end
  if not row then
    heads[ns] = false
    fields[#fields + 1] = 'h' .. ns
    members[#members + 1] = kind .. ns
    return
  end
  local told = unpack_all(row)
  heads[ns] = {sub(member, 2, part_end(member)), told[3][3], told[3][4]}
  records['h' .. ns] = pack(heads[ns])
  if kind == 't' and told[1][2] then
    added[#added + 1] = 'r' .. told[1][2] .. ns
  end
end

for ns, plan in pairs(plans) do
  drop_checkpoints(ns, plan.gone)
  drop_values(ns, plan.named, plan.left)
  move_head(ns, plan.gone, plan.left)
end
if next(heads) ~= nil then
  local newest = newest_of(rows, index, heads)
  if newest then
    records['u'] = newest
  else
    fields[#fields + 1] = 'u'
  end
end

-- Removals first, as a full server lets nothing be added before something was removed.
for _, field in ipairs(fields) do
  call('HDEL', rows, field)
end
for _, member in ipairs(members) do
  call('ZREM', index, member)
end
for field, record in pairs(records) do
  call('HSET', rows, field, record)
end
for _, member in ipairs(added) do
  call('ZADD', index, 0, member)
end
if ARGV[3] == '1' then
  change(rows)
end

if call('EXISTS', index) == 0 then
  call('HDEL', rows, 'n', 'u')
  if KEYS[3] then
    call('ZREM', KEYS[3], ARGV[1])
  end
  return {removed, '', before}
end
local updated = call('HGET', rows, 'u') or call('HGET', rows, 'n')
if KEYS[3] then
  call('ZADD', KEYS[3], updated, ARGV[1])
end
return {removed, updated, before}
