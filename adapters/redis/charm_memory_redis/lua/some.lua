-- KEYS: the recency index. ARGV: how many. Answers {thread, score, …} of any.

return call('ZRANDMEMBER', KEYS[1], ARGV[1], 'WITHSCORES')
