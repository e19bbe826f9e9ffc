--- weir in APISIX.
--
-- route: the plan's first attempt becomes the request's upstream, a single node; before_proxy, which APISIX runs again for each retry,
-- makes it the next attempt's, with its own key, Host and body. observe: another plugin (ai-proxy) routes, weir counts what goes to the
-- client.
--
-- Phases: access, before_proxy, header_filter, body_filter, log; the engine is opened by init, in each worker.
-- Priority 1039: after authentication and what edits prompts (1050 to 1073), just after ai-proxy (1040) has taken its request; before
-- every logger. What plugins below it set as upstream (traffic-split, 966) would win: not to be used together.

local core = require "apisix.core"
local plugin = require "apisix.plugin"
local upstream = require "apisix.upstream"
local weir_worker = require "resty.weir.worker"

local ngx = ngx

-- The request line is made once: a retry can have other headers, and from ngx_lua 0.10.28 on another body.
local FIXED = ngx.config.ngx_lua_version >= 10028 and "scheme uri" or "scheme uri body"

local path = { type = "string", pattern = "^/." }

-- In plugin_attr of config.yaml: what a machine has, not what a route wants.
local attr_schema = {
  type = "object",
  properties = {
    routing = path,
    prices = path,
    credit = { type = "string", pattern = [[^\d+(\.\d+)?$]] },
    node = { type = "string", pattern = "^unix:/." },
    when_node_is_away = { type = "string", enum = { "refuse", "config_only" }, default = "refuse" },
    remember_s = { type = "integer", minimum = 1, maximum = 2592000, default = 3600 },
    journal = path,
  },
  required = { "routing", "prices" },
  additionalProperties = false,
}

local schema = {
  type = "object",
  properties = {
    mode = { type = "string", enum = { "route", "observe" }, default = "route" },
    tier = { type = "string", minLength = 1 },
    path = path,
    provider = { type = "string", minLength = 1 },
  },
  additionalProperties = false,
}

local _M = { version = 0.1, priority = 1039, name = "weir", schema = schema, attr_schema = attr_schema }

local worker

function _M.check_schema(conf) return core.schema.check(schema, conf) end

--- In each worker, when it begins and when plugins are loaded again.
function _M.init()
  local attr = plugin.plugin_attr("weir") or {}
  local ok, why = core.schema.check(attr_schema, attr)
  if ok and attr.when_node_is_away == "config_only" and not (attr.node and attr.journal) then
    ok, why = false, "config_only needs node and journal"
  end
  if ok then worker, why = weir_worker.open(attr) end
  if not worker then core.log.error("weir: plugin_attr.weir: ", why) end
end

--- Before plugins are loaded again. Requests under way keep their engine.
function _M.destroy()
  if worker then worker.node:close() end
  worker = nil
end

local function refuse(step)
  for _, header in ipairs(step.headers) do core.response.set_header(header[1], header[2]) end
  return step.status, step.body
end

local function broken(why)
  core.log.error("weir: ", why)
  return refuse(weir_worker.BROKEN)
end

--- Points the request at an attempt. The node is the one APISIX has picked or is about to pick.
local function send_to(held, ctx, step)
  for _, name in ipairs(step.remove) do core.request.set_header(ctx, name, nil) end
  step:set_headers(function(name, value) core.request.set_header(ctx, name, value) end)
  if step.body_bytes then
    local body, why = held.request:body()
    if not body then return nil, why end
    ngx.req.set_body_data(body)
  end
  local node, address = held.node, held.addresses[step.host]
  if not address then return nil, "no address of " .. step.host end
  node.host, node.port, node.domain = address, step.port, step.host
  ctx.var.upstream_host = step.authority
  return true
end

local UNREACHED = { status = 0, from_upstream = false }

--- Points the request at an attempt, or at the first after it that has an address. Returns the step it came to: no attempt, if none has.
local function settle_on(held, ctx, step)
  while step.kind == "try" do
    local ok, why = send_to(held, ctx, step)
    if ok then return step end
    core.log.warn("weir: ", why)
    step, why = held.request:next(UNREACHED)
    if not step then
      core.log.error("weir: ", why)
      step = weir_worker.BROKEN
    end
  end
  return step
end

--- Looks up what the plan may come to: a balancer cannot wait.
local function addresses_of(step, hosts)
  local addresses = {}
  for index = 0, #hosts do
    local host = index == 0 and step.host or hosts[index]
    if not addresses[host] then
      local address, why = core.resolver.parse_domain(host)
      if not address then core.log.warn("weir: no address of ", host, ": ", why) end
      addresses[host] = address
    end
  end
  return addresses
end

function _M.access(conf, ctx)
  local observes = conf.mode == "observe"
  if not worker then
    if observes then return end
    return broken("the engine is not open: see plugin_attr.weir")
  end
  local body, why = weir_worker.read_body()
  if not body then return broken(why) end
  local held, step, failure = worker:begin {
    path = conf.path or ctx.var.uri, headers = ngx.req.get_headers(0), body = body,
    account = ctx.consumer_name, tier = conf.tier, observe = observes or nil, fixed = FIXED,
  }
  if not held then return broken(step) end
  if observes and step.kind ~= "pass" then
    -- Nothing weir knows how to count.
    return held.request:free()
  end
  ctx.weir = held
  if observes then return end
  if not step then return broken(failure) end
  if step.kind == "try" then
    held.addresses = addresses_of(step, held.request:hosts() or {})
    held.node = { weight = 1, priority = 0 }
    step = settle_on(held, ctx, step)
  end
  if step.kind ~= "try" then
    held.refused = true
    return refuse(step)
  end
  -- Fixed from here on.
  ctx.var.upstream_uri = step.uri
  ctx.upstream_scheme, ctx.var.upstream_scheme = step.scheme, step.scheme
  local read_s = math.max(step.first_event_ms, step.between_events_ms) / 1000
  upstream.set(ctx, "weir#" .. step.request_id, ctx.conf_version, {
    type = "roundrobin", scheme = step.scheme, pass_host = "pass", nodes = { held.node }, retries = #(held.request:hosts() or {}),
    timeout = { connect = step.connect_ms / 1000, send = read_s, read = read_s },
  })
end

--- Once in access, when the first attempt stands, and in the balancer for each retry. APISIX makes the request anew behind it.
function _M.before_proxy(conf, ctx)
  local held = ctx.weir
  if not held or conf.mode == "observe" or ngx.get_phase() ~= "balancer" then return end
  local step, why = held.request:next(weir_worker.last_failure())
  if not step then
    core.log.error("weir: ", why)
    step = weir_worker.BROKEN
  end
  step = settle_on(held, ctx, step)
  if step.kind ~= "try" then
    held.refusal = step
    return 502
  end
end

--- Who answered, where ai-proxy knows.
local function seen(conf, ctx)
  local instance = ctx.picked_ai_instance
  local model = ctx.var.llm_model
  return { provider = conf.provider or (instance and instance.provider), model = model ~= "" and model or nil }
end

function _M.header_filter(conf, ctx)
  local held = ctx.weir
  if not held then return end
  if conf.mode == "route" then
    held:end_of_retries()
  elseif core.response.get_response_source(ctx) == "upstream" then
    held:header_filter(seen(conf, ctx))
  end
end

function _M.body_filter(_, ctx)
  if ctx.weir then ctx.weir:body_filter() end
end

function _M.log(conf, ctx)
  local held = ctx.weir
  if not held then return end
  ctx.weir = nil
  local row = held:finish(ngx.status)
  if not row or conf.mode == "observe" then return end
  row = core.json.decode(row)
  local prompt, completion = weir_worker.tokens(row.usage)
  local var = ctx.var
  var.request_llm_model = row.asked_model
  var.llm_model = type(row.upstream_model) == "string" and row.upstream_model or ""
  var.llm_prompt_tokens, var.llm_completion_tokens, var.llm_total_tokens = prompt, completion, prompt + completion
end

return _M
