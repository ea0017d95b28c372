-- Takes threads that are gone out of the recency index, on a single server.
-- KEYS: the recency index. ARGV: prefix of keys, how many threads to look at: any.

for _, thread in ipairs(call('ZRANDMEMBER', KEYS[1], ARGV[2])) do
  local rows, index = keys_of(ARGV[1], thread)
  tidy(rows, index)
  if call('EXISTS', index) == 0 then
    call('ZREM', KEYS[1], thread)
  end
end
return 1
