-- The recency index with its threads, on a single server. Threads that are gone are taken out, and times set right that
-- an index may have that came from a cluster.
-- KEYS: the recency index. ARGV: prefix of keys, score and thread to go on behind ('' for none), how many, and of root
-- heads a channel that pending writes have to go to or '', msgpack {text, …} that the row has to have.
-- Answers {{thread, score, …}, {what a listing tells of each, …}}, the one with the greatest score first; of what cannot
-- be wanted nothing.

local channel, texts = ARGV[5], unpack_all(ARGV[6])

-- What a listing tells takes longer to find than that it is not wanted.
local function may_be_wanted(rows)
  local root = (channel ~= '' or #texts > 0) and head_of(rows, '\0')
  if not root then
    return true
  end
  local is_there = channel == ''
  for _, write in ipairs(is_there and {} or writes_of(rows, root[1], '\0')) do
    is_there = is_there or facts(write)[1] == channel
  end
  if not is_there then
    return false
  end
  local row = #texts > 0 and call('HGET', rows, 'c' .. root[1] .. '\0')
  for _, text in ipairs(row and texts or {}) do
    if not find(row, text, 1, true) then
      return false
    end
  end
  return true
end

local found = recent(KEYS[1], ARGV[2], ARGV[3], tonumber(ARGV[4]))
local threads = {}
for n = 1, #found, 2 do
  local rows, index = keys_of(ARGV[1], found[n])
  local told = {}
  if may_be_wanted(rows) then
    told = listed(rows, index)
    local updated = told[2] ~= '' and told[2] or told[1]
    if tonumber(updated or 'nan') ~= tonumber(found[n + 1]) then
      call('ZREM', KEYS[1], found[n])
      if updated then
        call('ZADD', KEYS[1], updated, found[n])
      end
    end
  end
  threads[#threads + 1] = told
end
return {found, threads}
