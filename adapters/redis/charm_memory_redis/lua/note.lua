-- KEYS: the recency index. ARGV: thread, when one of its heads moved last.

return call('ZADD', KEYS[1], ARGV[2], ARGV[1])
