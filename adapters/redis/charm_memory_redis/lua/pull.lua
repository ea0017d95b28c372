-- KEYS: rows, index, tombstone. ARGV: msgpack {ns: [[id, mark or nil], …]} of the heads that are held, msgpack
-- {field: stamp} of the values, ttl or ''.
-- Answers {deleted_at or '', through, {ns, id, device, at, mark, …}, entries, values}.

local rows, index, stone = KEYS[1], KEYS[2], KEYS[3]
local marks, held, ttl = unpack_all(ARGV[1]), unpack_all(ARGV[2]), ARGV[3]
tidy(rows, index)

local live = {}
for _, member in ipairs(call('ZRANGEBYLEX', index, '[s', '(s\255')) do
  live[#live + 1] = sub(member, 2)
end
local root = head_of(rows, '\0')
if root then
  local under = 'r' .. root[1]
  for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. under, '(' .. under .. '\255')) do
    live[#live + 1] = sub(member, #under + 1)
  end
end

local heads, entries, values, seen = {}, {}, {}, {}
for _, ns in ipairs(live) do
  local head = head_of(rows, ns)
  local list = call('HGET', rows, 'W' .. head[1] .. ns)
  local mark = list and unpack_all(list)[1] or ''
  for _, each in ipairs({ns, head[1], head[2], head[3], mark}) do
    heads[#heads + 1] = each
  end
  local same, there = false, nil
  for _, known in ipairs(marks[ns] or {}) do
    same = same or known[1] == head[1] and known[2] == mark
    local row = not there and call('HGET', rows, 'c' .. known[1] .. ns)
    if row then
      there = {}
      for _, version in ipairs(versions(row)) do
        there[version] = true
      end
    end
  end
  if not same then
    local row = call('HGET', rows, 'c' .. head[1] .. ns)
    local missing = {}
    for _, version in ipairs(versions(row)) do
      if not (there and there[version]) then
        missing[#missing + 1] = version
      end
    end
    entries[#entries + 1] = entry(rows, head[1], ns, row, head[1], true)
    entries[#entries][6] = missing
    add_values(rows, ns, missing, held, seen, values)
  end
end
if ttl ~= '' then
  keep(rows, index, ttl)
end
return {call('HGET', stone, 'at') or '', call('HGET', stone, 'through') or '', heads, entries, values}
