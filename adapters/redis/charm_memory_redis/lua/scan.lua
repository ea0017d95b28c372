-- KEYS: rows, index.
-- ARGV: msgpack {max, min, ns or nil, runs or nil, limit, values, bytes, names or nil, only_names}.
-- Answers {entries, values, the name to go on behind or ''}, newest first; of `names` those that are gone as {name}. Or
-- {the names alone, the name to go on behind}, the latter only if not enough were looked at to fill the page.

local rows, index = KEYS[1], KEYS[2]
local max, min, ns, runs, limit, with_values, most, names, only_names = unpack(unpack_all(ARGV[1]), 1, 9)
local MOST_LOOKED = 5000
tidy(rows, index)

local wanted
if runs then
  wanted = {}
  for _, run in ipairs(runs) do
    wanted[run] = true
  end
end

local function fits(member)
  if ns then
    local length = part_end(member)
    if sub(member, length + 1) ~= ns then
      return false
    end
  end
  return not wanted or wanted[facts(call('HGET', rows, member))[3] or false]
end

local more, after = false, ''
if not names then
  names = {}
  -- Of many that do not fit, few are looked at for each page: others wait meanwhile.
  local page, looked = limit + 1, 0
  if ns or wanted then
    page = math.max(page, 256)
  end
  repeat
    local members = call('ZREVRANGEBYLEX', index, max, min, 'LIMIT', 0, page)
    for _, member in ipairs(members) do
      if fits(member) then
        if #names == limit then
          more = true
          break
        end
        names[#names + 1] = member
      end
    end
    looked = looked + #members
    after = #members == page and not more and members[page] or ''
    max = '(' .. after
  until after == '' or looked >= MOST_LOOKED
end
if only_names then
  return {names, after}
end
if more then
  after = names[#names] or ''
end

local entries, values, seen, heads, size = {}, {}, {}, {}, 0
for n, member in ipairs(names) do
  local row = call('HGET', rows, member)
  if row then
    if size > most then
      after = names[n - 1]
      break
    end
    local length = part_end(member)
    local id, own = sub(member, 2, length), sub(member, length + 1)
    if heads[own] == nil then
      local head = head_of(rows, own)
      heads[own] = head and head[1] or ''
    end
    local found = entry(rows, id, own, row, heads[own], with_values)
    if with_values then
      size = size + #row + add_values(rows, own, versions(row), {}, seen, values)
      for _, write in ipairs(found[4]) do
        size = size + #write
      end
    end
    entries[n] = found
  else
    entries[n] = {member}
  end
end
return {entries, values, after}
