--- weir in Kong.
--
-- route: the plan's first attempt is the request's target; the retry callback carries out the others, each with its own key, Host,
-- path and body. observe: another plugin (ai-proxy) routes, weir counts what goes to the client.
--
-- Phases: configure (opens the engine, a worker's own), access, balancer (through the callback), header_filter, body_filter, log.
-- Priority 769: after authentication, limits and what edits prompts (771 to 777), and just after ai-proxy (770), so that its request
-- has been made and its answer is in the client's format when weir sees them; before every logger.

local balancer = require "ngx.balancer"
local cjson = require "cjson.safe"
local weir_worker = require "resty.weir.worker"

local kong = kong
local ngx = ngx

-- Per request control of retries, and with it a proxy module that reads the URI again when a request is made anew. Older releases of
-- Kong retry after a lost connection only, and only what the first attempt would have sent. The scheme stays in any case: Kong names a
-- kept TLS connection's host by the first attempt's.
local has_upstream, kong_upstream = pcall(require, "resty.kong.upstream")
local FIXED = has_upstream and "scheme" or "scheme uri body"
-- What nginx can take for a failure of those that weir would retry; 401, 402, 408 and 529 it cannot.
local NEXT = { "error", "timeout", "non_idempotent", "http_403", "http_429", "http_500", "http_502", "http_503", "http_504" }

local SETTINGS = { "routing", "prices", "credit", "node", "when_node_is_away", "remember_s", "journal" }

local Weir = { VERSION = "0.1.0", PRIORITY = 769 }

-- What was opened in this worker, by its settings: several of the plugin's configurations may share one.
local workers = {}

local function key_of(conf)
  local values = {}
  for index, name in ipairs(SETTINGS) do values[index] = tostring(conf[name]) end
  return table.concat(values, "\n")
end

--- Opens what the configurations need. In each worker, when it begins and whenever configurations change.
function Weir:configure(configs)
  for _, conf in ipairs(configs or {}) do
    local key = key_of(conf)
    if not workers[key] then
      local settings = {}
      for _, name in ipairs(SETTINGS) do settings[name] = conf[name] end
      local worker, why = weir_worker.open(settings)
      workers[key] = worker
      if not worker then kong.log.err("weir: ", why) end
    end
  end
end

local function refuse(step)
  local headers = {}
  for _, header in ipairs(step.headers) do headers[header[1]] = header[2] end
  return kong.response.exit(step.status, step.body, headers)
end

local function broken(why)
  kong.log.err("weir: ", why)
  return refuse(weir_worker.BROKEN)
end

--- Points the request at an attempt. In access and in the balancer, where the PDK has no clear_header and no set_raw_query.
local function send_to(held, step)
  local request = kong.service.request
  for _, name in ipairs(step.remove) do ngx.req.clear_header(name) end
  step:set_headers(request.set_header)
  if step.body_bytes then
    local body, why = held.request:body()
    if not body then return nil, why end
    request.set_raw_body(body)
  end
  kong.service.set_target(step.host, step.port)
  -- set_target makes the bare host the Host header and the name to check the certificate against; the port belongs to the first.
  request.set_header("host", step.authority)
  -- weir's is escaped and has its query: set_path would escape it again.
  ngx.var.upstream_uri = step.uri
  return true
end

--- The retry callback, in the balancer phase.
local function retry(held)
  local step, why = held.request:next(weir_worker.last_failure())
  if not step then return nil, why end
  if step.kind ~= "try" then
    held.refusal = step
    return nil, "no attempt is left"
  end
  local ok
  ok, why = send_to(held, step)
  if not ok then return nil, why end
  -- set_target turns Kong's own preserve_host on, so that Kong would send the first attempt's request again, key and all.
  ok, why = balancer.recreate_request()
  if not ok then return nil, why end
  return step.host, step.port
end

local function account()
  local consumer = kong.client.get_consumer()
  return consumer and (consumer.custom_id or consumer.username or consumer.id) or nil
end

function Weir:access(conf)
  local observes = conf.mode == "observe"
  local worker = workers[key_of(conf)]
  if not worker then
    if observes then return end
    return broken("the engine is not open: see the log of when the configuration was loaded")
  end
  local body, why = weir_worker.read_body()
  if not body then return broken(why) end
  local held, step, failure = worker:begin {
    path = conf.path or kong.request.get_path(), headers = ngx.req.get_headers(0), body = body,
    account = account(), tier = conf.tier, observe = observes or nil, fixed = FIXED,
  }
  if not held then return broken(step) end
  if observes and step.kind ~= "pass" then
    -- Nothing weir knows how to count.
    return held.request:free()
  end
  kong.ctx.plugin.held = held
  if observes then return end
  if not step then return broken(failure) end
  if step.kind == "refuse" then
    held.refused = true
    return refuse(step)
  end
  -- Names are looked up here: the balancer may not wait, and takes them from Kong's cache.
  local hosts = held.request:hosts() or {}
  for _, host in ipairs(hosts) do kong.dns.toip(host, step.port) end
  local ok
  ok, why = send_to(held, step)
  if not ok then return broken(why) end
  kong.service.request.set_scheme(step.scheme)
  kong.service.request.set_raw_query("")
  kong.service.set_timeouts(step.connect_ms, step.connect_ms, math.max(step.first_event_ms, step.between_events_ms))
  kong.service.set_retries(#hosts)
  if has_upstream then
    why = kong_upstream.set_next_upstream(unpack(NEXT))
    if why then kong.log.err("weir: ", why) end
  end
  kong.service.set_target_retry_callback(function() return retry(held) end)
end

function Weir:header_filter(conf)
  local held = kong.ctx.plugin.held
  if not held then return end
  if conf.mode == "route" then
    held:end_of_retries()
  elseif kong.response.get_source() == "service" then
    held:header_filter { provider = conf.provider }
  end
end

function Weir:body_filter()
  local held = kong.ctx.plugin.held
  if held then held:body_filter() end
end

function Weir:log()
  local held = kong.ctx.plugin.held
  if not held then return end
  local row = held:finish(ngx.status)
  if row then kong.log.set_serialize_value("weir", cjson.decode(row)) end
end

return Weir
