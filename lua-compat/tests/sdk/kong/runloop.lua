--- Calls the handler in the phases in which Kong does, and does around it what Kong does to a request's target.

local balancer = require "ngx.balancer"
local cjson = require "cjson.safe"

local _M = {}

local handler, check_schema, phases
-- error_page begins with an empty ngx.ctx; Kong keeps a reference.
local contexts = {}
_M.configs = {}

--- In init_worker. `given`: a configuration for each name.
function _M.init_worker(given)
  local tree, pdk = os.getenv "KONG_SRC", require "pdk"
  phases = setmetatable({}, { __index = function(_, name) return name end })
  check_schema = require "schema"
  if tree then
    local sources = require "sources"
    sources.use(tree)
    pdk, phases, check_schema = sources.pdk(pdk), sources.phases(), sources.check_schema
  end
  rawset(_G, "kong", pdk)
  handler = require "kong.plugins.weir.handler"
  local schema = require "kong.plugins.weir.schema"
  local list = {}
  for name, config in pairs(given) do
    assert(check_schema(schema, config))
    _M.configs[name] = config
    list[#list + 1] = config
  end
  handler:configure(list)
  handler:configure(nil)
end

local function config() return ngx.ctx.config end

local function set_host_header(data, in_balancer)
  if data.preserve_host then return end
  local host = data.host
  if (data.port ~= 80 or ngx.var.upstream_scheme ~= "http") and (data.port ~= 443 or ngx.var.upstream_scheme ~= "https") then
    host = host .. ":" .. data.port
  end
  if host ~= ngx.var.upstream_host then
    ngx.var.upstream_host = host
    if in_balancer then assert(balancer.recreate_request()) end
  end
end

function _M.access()
  local ctx, var = ngx.ctx, ngx.var
  contexts[var.ctx_ref] = ctx
  ctx.KONG_PHASE, ctx.config, ctx.ai_proxy = phases.access, _M.configs[var.route], _M.ai_proxy[var.route]
  ctx.KONG_NAMESPACES = { plugin = ctx.config }
  ctx.balancer_data = { host = "llm.invalid", port = 80, try_count = 0, retries = 5, timeouts = { 60000, 60000, 60000 } }
  var.upstream_scheme, var.upstream_uri = "http", var.uri
  local consumer = var.http_x_consumer
  if consumer then ctx.authenticated_consumer = { id = "5e1f", username = consumer } end
  if ctx.ai_proxy then ctx.ai_proxy.access() end
  handler:access(config())
  local data = ctx.balancer_data
  if var.upstream_host ~= "" then data.preserve_host = true end
  if var.is_args == "?" then var.upstream_uri = var.upstream_uri .. "?" .. (var.args or "") end
  local ip, port = kong.dns.toip(data.host, data.port, false)
  if not ip then
    ctx.KONG_EXITED = true
    ngx.status = 503
    ngx.print("name resolution failed")
    return ngx.exit(503)
  end
  data.ip, data.port = ip, port
  set_host_header(data)
  ctx.KONG_PROXIED = true
end

function _M.balancer()
  local ctx = ngx.ctx
  ctx.KONG_PHASE = phases.balancer
  local data = ctx.balancer_data
  data.try_count = data.try_count + 1
  if data.try_count == 1 then
    if data.retries > 0 then balancer.set_more_tries(data.retries) end
  else
    balancer.get_last_failure()
    if data.retry_callback then
      local ran, going, why = pcall(data.retry_callback)
      if not ran or not going then
        ngx.log(ngx.ERR, "retry handler failed: ", tostring(why or going))
        return ngx.exit(503)
      end
    end
    local ip, port = kong.dns.toip(data.host, data.port, true)
    if not ip then return ngx.exit(503) end
    data.ip, data.port = ip, port
    set_host_header(data, true)
  end
  assert(balancer.set_current_peer(data.ip, data.port))
  balancer.set_timeouts(data.timeouts[1] / 1000, data.timeouts[2] / 1000, data.timeouts[3] / 1000)
end

function _M.header_filter()
  ngx.ctx.KONG_PHASE = phases.header_filter
  handler:header_filter(config())
end

function _M.body_filter()
  ngx.ctx.KONG_PHASE = phases.body_filter
  if ngx.ctx.ai_proxy then ngx.ctx.ai_proxy.body_filter() end
  handler:body_filter(config())
end

function _M.log()
  local ctx = ngx.ctx
  ctx.KONG_PHASE = phases.log
  handler:log(config())
  contexts[ngx.var.ctx_ref] = nil
  for _, entry in ipairs(ctx.serialize_values or {}) do
    local file = assert(io.open(_M.serialized, "a"))
    file:write(cjson.encode { [entry.key] = entry.value }, "\n")
    file:close()
  end
end

--- The page Kong shows for an error that nginx found.
function _M.error()
  ngx.ctx = contexts[ngx.var.ctx_ref] or {}
  ngx.ctx.KONG_PHASE, ngx.ctx.KONG_UNEXPECTED = phases.error, true
  return kong.response.exit(ngx.status, '{"message":"An error of Kong\'s own"}', { ["Content-Type"] = "application/json" })
end

--- Is a configuration taken?
function _M.schema()
  ngx.req.read_body()
  local ok, why = check_schema(require "kong.plugins.weir.schema", cjson.decode(ngx.req.get_body_data()))
  ngx.print(ok and "ok" or why)
end

--- What the kit says to a call it does not have, to one in the wrong phase, and to one with a wrong argument.
function _M.strict()
  local function says(call, ...)
    local _, why = pcall(call, ...)
    ngx.print(tostring(why), "\n")
  end
  says(function() return kong.service.request.set_everything end)
  ngx.ctx.KONG_PHASE = phases.balancer
  says(kong.service.request.set_raw_query, "")
  says(kong.service.set_target, "host", "80")
end

-- Routes on which another plugin decides: where to, with which key, and what the client gets of the answer.
_M.ai_proxy = {}

return _M
