--- The phases of a request in stock nginx with ngx_lua; see nginx/nginx.conf for how they are wired.
--
-- One upstream block a provider, named weir_<provider>, so that no two hosts share kept connections: nginx 1.22 tells TLS
-- connections apart by address alone. Or, where ngx_lua can tell them apart by host, one block weir_peers for all. A retry goes through error_page to a named location, where the upstream request is made
-- anew: no provider sees another's key or Host.

local weir_peers = require "resty.weir.peers"
local weir_worker = require "resty.weir.worker"

local _M = {}

local worker, caller, nameservers
local open = {}

local log = weir_worker.log

--- In init_worker_by_lua. `given`: what resty.weir.worker opens with, caller (a function that returns the account and tier of this
-- request where nginx knows them), and peers = "dynamic" with nameservers (a list of addresses) for the block weir_peers.
function _M.init(given)
  caller = given.caller
  nameservers = given.peers == "dynamic" and (given.nameservers or {}) or nil
  local why = nameservers and weir_peers.why_not()
  if not why then worker, why = weir_worker.open(given) end
  if not worker then log(ngx.EMERG, why) end
end

local function refuse(refusal)
  ngx.status = refusal.status
  for _, header in ipairs(refusal.headers) do ngx.header[header[1]] = header[2] end
  ngx.header["Content-Length"] = #refusal.body
  ngx.print(refusal.body)
  -- Not ngx.exit(status): error_page would take it for an upstream's failure.
  return ngx.exit(ngx.HTTP_OK)
end

local function broken(why)
  log(ngx.ERR, why)
  return refuse(weir_worker.BROKEN)
end

local function send_to(held, step)
  if step.kind == "refuse" then
    held.refused = true
    return refuse(step)
  end
  if step.kind ~= "try" then return broken("unexpected step " .. step.kind) end
  for _, name in ipairs(step.remove) do ngx.req.clear_header(name) end
  step:set_headers(ngx.req.set_header)
  if step.body_bytes then
    local body, why = held.request:body()
    if not body then return broken(why) end
    ngx.req.set_body_data(body)
  end
  local upstream = "weir_" .. step.provider
  if nameservers then
    local address, why = weir_peers.address(step.host, nameservers)
    -- Without an address the balancer fails, and the attempt with it.
    if not address then log(ngx.WARN, "no address of ", step.host, ": ", why) end
    held.peer, upstream = address and { address = address, port = step.port, host = step.host }, "weir_peers"
  end
  local var = ngx.var
  var.weir_scheme, var.weir_upstream, var.weir_uri = step.scheme, upstream, step.uri
  var.weir_host, var.weir_name = step.authority, step.host
end

--- access_by_lua of the location.
function _M.access()
  if not worker then return broken("no engine") end
  local body, why = weir_worker.read_body()
  if not body then return broken(why) end
  local asked = { path = ngx.var.uri, headers = ngx.req.get_headers(0), body = body }
  if caller then asked.account, asked.tier = caller() end
  local held, step, failure = worker:begin(asked)
  if not held then return broken(step) end
  local id = ngx.var.request_id
  ngx.var.weir_id = id
  open[id] = held
  if not step then return broken(failure) end
  return send_to(held, step)
end

--- balancer_by_lua of the upstream weir_peers.
function _M.balancer()
  local held = open[ngx.var.weir_id]
  local ok, why = nil, "no address"
  if held and held.peer then ok, why = weir_peers.connect(held.peer) end
  if ok then return end
  log(ngx.ERR, why)
  return ngx.exit(502)
end

--- access_by_lua of @weir_next.
function _M.next()
  local held = open[ngx.var.weir_id]
  if not held then return broken("a retry of nothing") end
  -- What came from a provider has its status, what nginx made of a broken connection does not.
  local last = (ngx.var.upstream_status or ""):match("(%d+)%s*$")
  local from_upstream = (ngx.var.upstream_header_time or ""):match("[%d.]+$") ~= nil
  local wait = tonumber(ngx.var.upstream_http_retry_after)
  local step, why = held.request:next { status = tonumber(last) or ngx.status, from_upstream = from_upstream, retry_after_ms = wait and wait * 1000 }
  if not step then return broken(why) end
  if step.kind == "pass" then
    held.refused = true
    return refuse { status = tonumber(last) or 502, headers = weir_worker.BROKEN.headers, body = weir_worker.BROKEN.body }
  end
  return send_to(held, step)
end

--- header_filter_by_lua.
function _M.header_filter()
  local held = open[ngx.var.weir_id or ""]
  if held and ngx.var.upstream_status then held:header_filter() end
end

--- body_filter_by_lua.
function _M.body_filter()
  local held = open[ngx.var.weir_id or ""]
  if held then held:body_filter() end
end

--- log_by_lua: the row, whatever happened.
function _M.log()
  local id = ngx.var.weir_id or ""
  local held = open[id]
  if not held then return end
  open[id] = nil
  held:finish(ngx.status)
end

--- content_by_lua of a page for Prometheus: this worker's numbers.
function _M.metrics()
  ngx.header["Content-Type"] = "text/plain; version=0.0.4"
  ngx.print(worker and worker.engine:metrics() or "")
end

--- The engine, for other modules in this worker.
function _M.engine() return worker and worker.engine end

return _M
