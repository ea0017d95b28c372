-- KEYS: the recency index. ARGV: score and thread to go on behind ('' for none), how many.
-- Answers {thread, score, …}, the one with the greatest score first.

return recent(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]))
