-- KEYS: rows, index. Answers both as RESTORE takes them, or {} if the thread has no checkpoints.

tidy(KEYS[1], KEYS[2])
if call('EXISTS', KEYS[2]) == 0 then
  return {}
end
return {call('DUMP', KEYS[1]), call('DUMP', KEYS[2])}
