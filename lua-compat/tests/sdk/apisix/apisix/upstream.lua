--- What weir uses of apisix.upstream.
local strict = require "strict"

local KNOWN = { type = "string", scheme = "string", pass_host = "string", nodes = "table", retries = "number", timeout = "table" }

return strict("apisix.upstream", {
  set = function(ctx, key, version, conf)
    if not (ctx and key and version and conf) then error("missing argument", 2) end
    if ngx.get_phase() ~= "access" then error("too late to set an upstream", 2) end
    for name, value in pairs(conf) do
      if type(value) ~= KNOWN[name] then error("upstream." .. name .. " is unknown or of the wrong type", 2) end
    end
    ctx.upstream_conf, ctx.upstream_version, ctx.upstream_key = conf, version, key
  end,
})
