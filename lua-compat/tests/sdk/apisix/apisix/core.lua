--- What weir uses of apisix.core: arguments are checked, and whatever is not here is an error.

local cjson = require "cjson.safe"
local strict = require "strict"

local function argument(value, kind, name)
  if type(value) ~= kind then error(name .. ": " .. kind .. " expected, not " .. type(value), 3) end
end

local ADDRESSES = { ["localhost"] = "127.0.0.1", ["127.0.0.1"] = "127.0.0.1" }

local function logger(level) return function(...) ngx.log(level, ...) end end

return strict("apisix.core", {
  log = strict("core.log", { error = logger(ngx.ERR), warn = logger(ngx.WARN) }),
  schema = strict("core.schema", { check = require "schema" }),
  json = strict("core.json", { decode = cjson.decode }),
  request = strict("core.request", {
    set_header = function(ctx, name, value)
      argument(ctx, "table", "ctx")
      argument(name, "string", "header_name")
      if value ~= nil then argument(value, "string", "header_value") end
      ngx.req.set_header(name, value)
    end,
  }),
  response = strict("core.response", {
    set_header = function(name, value)
      argument(name, "string", "name")
      argument(value, "string", "value")
      ngx.header[name] = value
    end,
    get_response_source = function(ctx)
      argument(ctx, "table", "ctx")
      if ctx._resp_source then return ctx._resp_source end
      if not ctx._apisix_proxied then return "apisix" end
      local last = (ngx.var.upstream_header_time or ""):match("[%d.-]+$")
      return last and last ~= "-" and "upstream" or "nginx"
    end,
  }),
  resolver = strict("core.resolver", {
    parse_domain = function(host)
      argument(host, "string", "host")
      if ngx.get_phase() == "balancer" then error("a name is looked up in the balancer", 2) end
      if not ADDRESSES[host] then return nil, "failed to parse domain" end
      return ADDRESSES[host]
    end,
  }),
})
