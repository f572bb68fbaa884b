-- Requests to one of so many routes, or to one of so many apps with a route each:
-- `wrk -s spread.lua URL -- routes 10000`.
local what, count

function init(words)
  what, count = words[#words - 1], tonumber(words[#words])
end

function request()
  local n = math.random(0, count - 1)
  if what == "apps" then
    return wrk.format("GET", "/hello?name=Ada", { Host = "app-" .. n .. ".localhost" })
  end
  return wrk.format("GET", "/hello-" .. n .. "?name=Ada")
end
