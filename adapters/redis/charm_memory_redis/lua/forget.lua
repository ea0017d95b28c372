-- Takes a thread that is gone out of the recency index.
-- KEYS: the recency index, and the thread's own unless they are elsewhere. ARGV: thread, the score it was found with.
-- Elsewhere the score tells whether the thread began anew meanwhile.

if #KEYS > 1 then
  tidy(KEYS[2], KEYS[3])
  if call('EXISTS', KEYS[3]) == 1 then
    return 0
  end
end
if tonumber(call('ZSCORE', KEYS[1], ARGV[1]) or 'nan') == tonumber(ARGV[2]) then
  return call('ZREM', KEYS[1], ARGV[1])
end
return 0
