--- What weir uses of Kong's plugin development kit, by its documented interface: arguments and phases are checked, and whatever is
-- not here is an error. Behaviour that matters to a retry (set_target and the Host header) is Kong's.

local strict = require "strict"

local function check(phases, name)
  local phase = ngx.ctx.KONG_PHASE
  if not phases:find(phase, 1, true) then error(name .. " may not be called in " .. tostring(phase), 3) end
end

local function argument(value, kind, name)
  if type(value) ~= kind then error(name .. ": " .. kind .. " expected, not " .. type(value), 3) end
end

local function whole(value, least, most, name)
  argument(value, "number", name)
  if value ~= math.floor(value) or value < least or value > most then error(name .. ": " .. value .. " is no whole number in its range", 3) end
end

local LATER = "access header_filter response body_filter log"
local REQUEST = "rewrite access balancer"

local resolved = {}
local ADDRESSES = { ["localhost"] = "127.0.0.1", ["127.0.0.1"] = "127.0.0.1" }

local service_request = strict("kong.service.request", {
  set_header = function(name, value)
    check(REQUEST, "set_header")
    argument(name, "string", "header")
    argument(value, "string", "value")
    if name:lower() == "host" then ngx.var.upstream_host = value end
    ngx.req.set_header(name, value)
  end,
  set_raw_body = function(body)
    check(REQUEST, "set_raw_body")
    argument(body, "string", "body")
    if ngx.get_phase() ~= "balancer" then ngx.req.read_body() end
    ngx.req.set_body_data(body)
  end,
  set_scheme = function(scheme)
    check(REQUEST, "set_scheme")
    if scheme ~= "http" and scheme ~= "https" then error("invalid scheme: " .. tostring(scheme), 2) end
    ngx.var.upstream_scheme = scheme
  end,
  set_raw_query = function(query)
    check("rewrite access", "set_raw_query")
    argument(query, "string", "query")
    ngx.req.set_uri_args(query)
  end,
})

local service = strict("kong.service", {
  request = service_request,
  set_target = function(host, port)
    check("rewrite access balancer preread", "set_target")
    argument(host, "string", "host")
    whole(port, 0, 65535, "port")
    ngx.var.upstream_host = host
    ngx.ctx.balancer_data.host, ngx.ctx.balancer_data.port = host, port
  end,
  set_target_retry_callback = function(callback)
    check("access", "set_target_retry_callback")
    argument(callback, "function", "callback")
    ngx.ctx.balancer_data.retry_callback = callback
  end,
  set_retries = function(retries)
    check("access", "set_retries")
    whole(retries, 0, 32767, "retries")
    ngx.ctx.balancer_data.retries = retries
  end,
  set_timeouts = function(connect, write, read)
    check("access", "set_timeouts")
    for _, timeout in ipairs { connect, write, read } do whole(timeout, 1, 2147483646, "timeout") end
    ngx.ctx.balancer_data.timeouts = { connect, write, read }
  end,
})

local function source()
  local ctx = ngx.ctx
  if ctx.KONG_UNEXPECTED then return "error" end
  if ctx.KONG_EXITED then return "exit" end
  return ctx.KONG_PROXIED and "service" or "error"
end

return strict("kong", {
  service = service,
  client = strict("kong.client", {
    get_consumer = function()
      check(LATER, "get_consumer")
      return ngx.ctx.authenticated_consumer
    end,
  }),
  request = strict("kong.request", {
    get_path = function()
      check(LATER .. " rewrite balancer", "get_path")
      return (ngx.var.request_uri:gsub("%?.*$", ""))
    end,
  }),
  response = strict("kong.response", {
    get_source = function()
      check("response header_filter body_filter log error", "get_source")
      return source()
    end,
    exit = function(status, body, headers)
      check("rewrite access response header_filter error", "exit")
      whole(status, 100, 599, "status")
      argument(body, "string", "body")
      argument(headers, "table", "headers")
      if ngx.ctx.KONG_PHASE ~= "error" then ngx.ctx.KONG_EXITED = true end
      ngx.status = status
      for name, value in pairs(headers) do ngx.header[name] = value end
      ngx.header["Content-Length"] = #body
      ngx.print(body)
      return ngx.exit(status)
    end,
  }),
  ctx = setmetatable({}, {
    __index = function(_, name)
      if name ~= "plugin" then error("there is no kong.ctx." .. tostring(name), 2) end
      check("rewrite " .. LATER .. " preread", "kong.ctx.plugin")
      local ctx = ngx.ctx
      ctx.weir_namespace = ctx.weir_namespace or {}
      return ctx.weir_namespace
    end,
  }),
  log = strict("kong.log", {
    err = function(...) ngx.log(ngx.ERR, ...) end,
    set_serialize_value = function(key, value)
      check("rewrite access header_filter response body_filter log", "set_serialize_value")
      argument(key, "string", "key")
      local values = ngx.ctx.serialize_values or {}
      ngx.ctx.serialize_values = values
      values[#values + 1] = { key = key, value = value }
    end,
  }),
  dns = strict("kong.dns", {
    toip = function(host, port, from_cache)
      argument(host, "string", "host")
      whole(port, 0, 65535, "port")
      if from_cache and not resolved[host] then return nil, "not in the cache" end
      if not from_cache and ngx.get_phase() == "balancer" then error("a name is looked up in the balancer", 2) end
      resolved[host] = ADDRESSES[host] ~= nil
      if not ADDRESSES[host] then return nil, "dns server error: 3 name error" end
      return ADDRESSES[host], port
    end,
  }),
})
