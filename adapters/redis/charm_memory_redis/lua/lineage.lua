-- KEYS: rows, index. ARGV: ns, id or '', msgpack {channels}, msgpack {field: stamp} of what is held, ttl or ''.
-- Answers {{id, {seed, …}, writes}, …} and values, nearest ancestor first.

local rows, index = KEYS[1], KEYS[2]
local ns, id, channels, held, ttl = ARGV[1], ARGV[2], unpack_all(ARGV[3]), unpack_all(ARGV[4]), ARGV[5]
tidy(rows, index)
if id == '' then
  local head = head_of(rows, ns)
  id = head and head[1] or ''
end

local open, left = {}, 0
for _, channel in ipairs(channels) do
  if not open[channel] then
    open[channel] = true
    left = left + 1
  end
end

local found, values, seen, been = {}, {}, {}, {}
local row = call('HGET', rows, 'c' .. id .. ns)
while row and left > 0 do
  id = facts(row)[1]
  row = id and not been[id] and call('HGET', rows, 'c' .. id .. ns)
  if row then
    been[id] = true
    local writes = {}
    for _, write in ipairs(writes_of(rows, id, ns)) do
      if open[facts(write)[1]] then
        writes[#writes + 1] = write
      end
    end
    local seeds = {}
    for _, version in ipairs(versions(row)) do
      local channel = sub(version, 1, part_end(version))
      if open[channel] and call('HEXISTS', rows, 'b' .. ns .. version) == 1 then
        open[channel] = nil
        left = left - 1
        seeds[#seeds + 1] = version
      end
    end
    if #seeds > 0 or #writes > 0 then
      add_values(rows, ns, seeds, held, seen, values)
      found[#found + 1] = {id, seeds, writes}
    end
  end
end
if ttl ~= '' then
  keep(rows, index, ttl)
end
return {found, values}
