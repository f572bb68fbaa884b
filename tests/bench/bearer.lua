-- The same request over and over, with a token: `wrk -s bearer.lua URL -- TOKEN`.
function init(words)
  wrk.headers["authorization"] = "Bearer " .. words[#words]
end
