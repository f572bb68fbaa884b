-- Requests to one of so many routes `/hello-N`, or to one of so many apps `app-N.localhost`:
-- `wrk -s spread.lua URL -- routes 10000`.
local what, count

function init(words)
  what, count = words[#words - 1], tonumber(words[#words])
end

function request()
  local n = math.random(0, count - 1)
  if what == "apps" then
    return wrk.format("GET", wrk.path, { Host = "app-" .. n .. ".localhost" })
  end
  return wrk.format("GET", wrk.path .. "-" .. n)
end
