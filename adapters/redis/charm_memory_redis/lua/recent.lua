-- KEYS: the recency index. ARGV: score and thread to go on behind ('' for none), how many.
-- Answers {thread, score, …}, the one with the greatest score first.

local index, score, thread, limit = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
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
