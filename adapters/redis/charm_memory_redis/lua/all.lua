-- KEYS: the recency index. ARGV: where to go on, '0' at first, about how many.
-- Answers {where to go on, '0' at the end, {thread, score, …}}: in the end every thread that was there all the while.

return call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
