-- KEYS: rows, index, tombstone. ARGV: ns, id or '', msgpack {field: stamp} of what is held, ttl or ''.
-- Answers {head, through, entry or '', values}.

local rows, index = KEYS[1], KEYS[2]
local ns, id, held, ttl = ARGV[1], ARGV[2], unpack_all(ARGV[3]), ARGV[4]
tidy(rows, index)
local head = head_of(rows, ns)
head = head and head[1] or ''
if id == '' then
  id = head
end
local answer = {head, call('HGET', KEYS[3], 'through') or '', '', {}}
local row = id ~= '' and call('HGET', rows, 'c' .. id .. ns)
if row then
  answer[3] = entry(rows, id, ns, row, head, true)
  add_values(rows, ns, versions(row), held, {}, answer[4])
end
if ttl ~= '' then
  keep(rows, index, ttl)
end
return answer
