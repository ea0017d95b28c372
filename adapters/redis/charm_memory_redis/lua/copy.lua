-- KEYS: rows and index of the source, of the target, the recency index. ARGV: target, at, ttl.
-- Answers the target's updated_at, or 'missing' or 'exists'.

local rows, index = KEYS[3], KEYS[4]
tidy(KEYS[1], KEYS[2])
tidy(rows, index)
if call('EXISTS', KEYS[2]) == 0 then
  return 'missing'
end
if call('EXISTS', index) == 1 then
  return 'exists'
end
call('COPY', KEYS[1], rows, 'REPLACE')
call('COPY', KEYS[2], index)
call('HSET', rows, 'n', ARGV[2])
local updated = call('HGET', rows, 'u') or ARGV[2]
keep(rows, index, ARGV[3])
call('ZADD', KEYS[5], updated, ARGV[1])
return updated
