--- Calls the plugin in the phases in which APISIX does, and does around it what APISIX does to a request's upstream.

local balancer = require "ngx.balancer"
local cjson = require "cjson.safe"
local plugin_module = require "apisix.plugin"

local _M = {}

local plugin, confs
-- With a tree: APISIX's own.
local real_balancer
-- ngx.exec begins with an empty ngx.ctx; APISIX keeps a reference.
local contexts = {}
-- Another plugin that routes, on the route "observe".
_M.ai_proxy = {}

local NGX_VARS = {
  upstream_scheme = true, upstream_host = true, upstream_uri = true, request_llm_model = true, llm_model = true,
  llm_prompt_tokens = true, llm_completion_tokens = true, llm_total_tokens = true,
}

local function vars()
  local set = {}
  return setmetatable({}, {
    __index = function(_, name)
      if set[name] ~= nil then return set[name] end
      return ngx.var[name]
    end,
    __newindex = function(_, name, value)
      if NGX_VARS[name] then ngx.var[name] = value end
      set[name] = value
    end,
  })
end

--- In init_worker. `attributes`: plugin_attr.weir; `given`: a configuration for each route.
function _M.init_worker(attributes, given)
  local tree = os.getenv "APISIX_SRC"
  if tree then real_balancer = require("sources").use(tree) end
  plugin_module.attributes.weir = attributes
  plugin = require "apisix.plugins.weir"
  assert(plugin.name == "weir" and plugin.version and plugin.priority and plugin.schema.properties._meta == nil)
  plugin.schema.properties._meta = { type = "object", properties = {} }
  plugin.init()
  plugin.destroy()
  plugin.init()
  for _, conf in pairs(given) do assert(plugin.check_schema(conf)) end
  confs = given
end

local function exit(code, body)
  if real_balancer then return require("apisix.core").response.exit(code, body) end
  ngx.status = code
  if body then ngx.print(body) end
  local ctx = ngx.ctx.api_ctx
  ctx._resp_source = ctx._resp_source or "apisix"
  return ngx.exit(code)
end

local function run(phase)
  local ctx = ngx.ctx.api_ctx
  local ai_proxy = ctx.route == "observe" and _M.ai_proxy[phase]
  if ai_proxy then ai_proxy(ctx) end
  local ran = plugin[phase]
  if not ran then return end
  local code, body = ran(ctx.conf, ctx)
  if code then return exit(code, body) end
end

function _M.access()
  local var = ngx.var
  local ctx = { var = vars(), conf_version = "1", route = var.route, conf = confs[var.route], consumer_name = var.http_x_consumer }
  ngx.ctx.api_ctx = ctx
  contexts[var.ctx_ref] = ctx
  run "access"
  if ctx.bypass_nginx_upstream then return run "before_proxy" end
  local conf = ctx.upstream_conf
  ctx.picked_server = real_balancer and assert(real_balancer.pick_server(nil, ctx)) or conf.nodes[1]
  if conf.pass_host == "node" then ctx.var.upstream_host = conf.nodes[1].domain .. ":" .. conf.nodes[1].port end
  run "before_proxy"
  ctx._apisix_proxied = true
  return ngx.exec "@disable_proxy_buffering"
end

--- access of @disable_proxy_buffering.
function _M.fetch_context() ngx.ctx.api_ctx = contexts[ngx.var.ctx_ref] end

function _M.balancer()
  local ctx = ngx.ctx.api_ctx
  if real_balancer then return real_balancer.run(nil, ctx, function(phase) return ctx, run(phase) or true end) end
  local conf, server = ctx.upstream_conf, ctx.picked_server
  if server then
    ctx.picked_server = nil
    balancer.set_timeouts(conf.timeout.connect, conf.timeout.send, conf.timeout.read)
    if conf.retries > 0 then balancer.set_more_tries(conf.retries) end
  else
    server = conf.nodes[1]
    run "before_proxy"
    assert(balancer.recreate_request())
  end
  assert(balancer.set_current_peer(server.host, server.port))
end

function _M.header_filter()
  if ngx.ctx.api_ctx then run "header_filter" end
end

function _M.body_filter()
  if ngx.ctx.api_ctx then run "body_filter" end
end

function _M.log()
  local ctx = ngx.ctx.api_ctx
  if not ctx then return end
  run "log"
  contexts[ngx.var.ctx_ref] = nil
  local file = assert(io.open(_M.serialized, "a"))
  file:write(cjson.encode {
    request_id = ngx.header["x-request-id"], model = ngx.var.llm_model, prompt = ngx.var.llm_prompt_tokens,
    completion = ngx.var.llm_completion_tokens, total = ngx.var.llm_total_tokens,
  }, "\n")
  file:close()
end

--- Is a configuration taken?
function _M.schema()
  ngx.req.read_body()
  local asked = cjson.decode(ngx.req.get_body_data())
  local ok, why
  if ngx.var.arg_of == "attr" then
    ok, why = require "schema"(plugin.attr_schema, asked)
  else
    ok, why = plugin.check_schema(asked)
  end
  ngx.print(ok and "ok" or why)
end

--- What the kit says to a call it does not have, to one without an argument, and to one with a wrong one.
function _M.strict()
  local core, upstream = require "apisix.core", require "apisix.upstream"
  local function says(call, ...)
    local _, why = pcall(call, ...)
    ngx.print(tostring(why), "\n")
  end
  says(function() return core.request.set_everything end)
  says(upstream.set, {}, "key")
  says(core.request.set_header, {}, 1, "value")
end

--- What ai-proxy does: it asks a provider by itself and prints what comes, chunk by chunk.
function _M.fetch_and_print(port, key)
  local socket = ngx.socket.tcp()
  assert(socket:connect("127.0.0.1", port))
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  assert(socket:send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " .. key .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body))
  ngx.status = tonumber(assert(socket:receive "*l"):match "%d%d%d")
  local size
  for line in function() return socket:receive "*l" end do
    if line == "" then break end
    local name, value = line:match "^([^:]+):%s*(.*)$"
    if name:lower() == "content-type" then ngx.header["Content-Type"] = value end
    if name:lower() == "content-length" then size = tonumber(value) end
  end
  if size then
    ngx.print(assert(socket:receive(size)))
  else
    for line in function() return socket:receive "*l" end do
      local length = tonumber(line, 16)
      if length == 0 then break end
      ngx.print(assert(socket:receive(length)))
      ngx.flush()
      socket:receive(2)
    end
  end
  socket:close()
  return ngx.exit(ngx.OK)
end

return _M
