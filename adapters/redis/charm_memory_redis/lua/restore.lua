-- KEYS: rows, index. ARGV: at, ttl, rows and index as DUMP gave them.
-- Answers the thread's updated_at, or 'exists' if there are checkpoints already.

local rows, index = KEYS[1], KEYS[2]
tidy(rows, index)
if call('EXISTS', index) == 1 then
  return 'exists'
end
call('RESTORE', rows, 0, ARGV[3], 'REPLACE')
call('RESTORE', index, 0, ARGV[4])
call('HSET', rows, 'n', ARGV[1])
local updated = call('HGET', rows, 'u') or ARGV[1]
keep(rows, index, ARGV[2])
return updated
