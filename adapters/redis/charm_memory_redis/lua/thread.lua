-- KEYS: rows, index. Answers what a listing tells of the thread.

return listed(KEYS[1], KEYS[2])
