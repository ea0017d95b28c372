-- Lists a thread, at least as late as a time.
-- KEYS: the recency index. ARGV: thread, the time. Answers what it is listed under.

call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
return call('ZSCORE', KEYS[1], ARGV[1])
