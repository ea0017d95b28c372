-- KEYS: rows, index. Answers {created_at, updated_at, {ns, id, device, at, …}, root head's row or '', its writes'
-- channels}, or what is left of that in a thread without heads: {} if nothing is.

local rows, index = KEYS[1], KEYS[2]
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
