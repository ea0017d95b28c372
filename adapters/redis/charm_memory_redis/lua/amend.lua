-- Lists a thread under another time, or no more, unless somebody else changed what it is listed under.
-- KEYS: the recency index. ARGV: thread, the time it was found under, the one to be or ''.

if tonumber(call('ZSCORE', KEYS[1], ARGV[1]) or 'nan') ~= tonumber(ARGV[2]) then
  return 0
end
if ARGV[3] == '' then
  return call('ZREM', KEYS[1], ARGV[1])
end
return call('ZADD', KEYS[1], ARGV[3], ARGV[1])
