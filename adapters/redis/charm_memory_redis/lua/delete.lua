-- KEYS: rows, index, tombstone, then the recency index unless it is elsewhere. ARGV: thread, at, ttl of the tombstone,
-- '1' if somebody waits for replicas, '' or msgpack [{ns: head, …}, how many checkpoints] as the thread has to be.
-- Answers '' if there was nothing, or it is otherwise, else the thread's updated_at.

local rows, index, stone = KEYS[1], KEYS[2], KEYS[3]
tidy(rows, index)
if ARGV[4] == '1' then
  change(rows)
end
if call('EXISTS', rows) == 0 then
  return ''
end
if ARGV[5] ~= '' then
  local heads, checkpoints = unpack(unpack_all(ARGV[5]))
  if call('ZLEXCOUNT', index, '[c', '(c\255') ~= checkpoints then
    return ''
  end
  for _, kind in ipairs({'s', 't'}) do
    for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. kind, '(' .. kind .. '\255')) do
      local ns = sub(member, 2)
      if heads[ns] ~= head_of(rows, ns)[1] then
        return ''
      end
      heads[ns] = nil
    end
  end
  if next(heads) then
    return ''
  end
end
local through = call('HGET', stone, 'through') or '\0'
local greatest = call('ZREVRANGEBYLEX', index, '(c\255', '[c', 'LIMIT', 0, 1)[1]
if greatest then
  local id = sub(greatest, 2, part_end(greatest))
  if less(through, id) then
    through = id
  end
end
local firsts = call('ZRANGEBYLEX', index, '[f', '(f\255')
local updated = call('HGET', rows, 'u') or call('HGET', rows, 'n') or '0'
-- First, as a full server lets nothing be added before something was removed.
call('UNLINK', rows, index)
call('HSET', stone, 'at', ARGV[2], 'through', through)
for _, member in ipairs(firsts) do
  call('HSET', stone, member, '')
end
if ARGV[3] == '' then
  call('PERSIST', stone)
else
  call('PEXPIRE', stone, ARGV[3])
end
if KEYS[4] then
  call('ZREM', KEYS[4], ARGV[1])
end
return updated
