--- lua-kong-nginx-module's control of proxy_next_upstream for one request. Here the configuration has it; the words are checked.
local strict = require "strict"

local WORDS = {}
for word in ("error timeout invalid_header http_500 http_502 http_503 http_504 http_403 http_404 http_429 updating off non_idempotent"):gmatch("%S+") do
  WORDS[word] = true
end

return strict("resty.kong.upstream", {
  set_next_upstream = function(...)
    if select("#", ...) == 0 then return "no argument" end
    for _, word in ipairs { ... } do
      if not WORDS[word] then return word .. " is not a valid argument" end
    end
  end,
})
