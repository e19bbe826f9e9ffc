--- The phases of a request in stock nginx with ngx_lua; see nginx/nginx.conf for how they are wired.
--
-- One upstream block a provider, named weir_<provider>, so that no two hosts share kept connections: nginx 1.22 tells TLS
-- connections apart by address alone. A retry goes through error_page to a named location, where the upstream request is made
-- anew: no provider sees another's key or Host.

local weir = require "resty.weir"
local weir_node = require "resty.weir.node"

local _M = {}

local engine, settings, node
local open = {}

local function log(level, ...) ngx.log(level, "weir: ", ...) end

--- In init_worker_by_lua. `given`: routing, prices; node = "unix:/run/weir/plugin.sock" or nil; when_node_is_away; journal (a path);
-- credit; remember_s; library; caller (a function that returns the account and tier of this request where nginx knows them).
function _M.init(given)
  settings = given
  local why
  engine, why = weir.open {
    routing = given.routing, prices = given.prices, credit = given.credit, node = given.node ~= nil,
    when_node_is_away = given.when_node_is_away, remember_s = given.remember_s, library = given.library,
  }
  if not engine then return log(ngx.EMERG, why) end
  node = weir_node.new(given)
  node:start()
end

local function refuse(status, headers, body)
  ngx.status = status
  for _, header in ipairs(headers) do ngx.header[header[1]] = header[2] end
  ngx.header["Content-Length"] = #body
  ngx.print(body)
  -- Not ngx.exit(status): error_page would take it for an upstream's failure.
  return ngx.exit(ngx.HTTP_OK)
end

local JSON = { { "Content-Type", "application/json" } }
local BROKEN = '{"error":{"message":"Internal error.","type":"server_error","param":null,"code":null}}'

local function broken(why)
  log(ngx.ERR, why)
  return refuse(500, JSON, BROKEN)
end

local function send_to(held, step)
  if step.kind == "refuse" then
    held.refused = true
    return refuse(step.status, step.headers, step.body)
  end
  if step.kind ~= "try" then return broken("unexpected step " .. step.kind) end
  for _, name in ipairs(step.remove) do ngx.req.clear_header(name) end
  for _, header in ipairs(step.set) do ngx.req.set_header(header[1], header[2]) end
  if step.body_bytes then
    local body, why = held.request:body()
    if not body then return broken(why) end
    ngx.req.set_body_data(body)
  end
  local var = ngx.var
  var.weir_scheme, var.weir_upstream, var.weir_uri = step.scheme, "weir_" .. step.provider, step.uri
  var.weir_host, var.weir_name = step.authority, step.host
end

local function read_body()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  if body then return body end
  local name = ngx.req.get_body_file()
  if not name then return "" end
  local file, why = io.open(name, "rb")
  if not file then return nil, why end
  body = file:read("*a")
  file:close()
  return body
end

--- access_by_lua of the location.
function _M.access()
  if not engine then return broken("no engine") end
  local body, why = read_body()
  if not body then return broken(why) end
  local asked = { path = ngx.var.uri, headers = ngx.req.get_headers(0), body = body }
  if settings.caller then asked.account, asked.tier = settings.caller() end
  local request, step = engine:begin(asked)
  if not request then return broken(step) end
  local held = { request = request }
  local id = ngx.var.request_id
  ngx.var.weir_id = id
  open[id] = held
  if step.kind == "admit" then
    local status, answer = node:ask("/plugin/v1/admit", step.body)
    if not status then log(ngx.WARN, "the node is away: ", answer) end
    step, why = request:admitted(status or 0, status and answer or "")
    if not step then return broken(why) end
  end
  return send_to(held, step)
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
    return refuse(tonumber(last) or 502, JSON, BROKEN)
  end
  return send_to(held, step)
end

--- header_filter_by_lua.
function _M.header_filter()
  local held = open[ngx.var.weir_id or ""]
  if not held or held.refused or held.answered then return end
  local status = ngx.status
  if not ngx.var.upstream_status then return end
  local answer, why = held.request:answer(status, ngx.resp.get_headers(0, true))
  if not answer then return log(ngx.ERR, why) end
  held.answered = true
  for _, name in ipairs(answer.remove) do ngx.header[name] = nil end
  for _, header in ipairs(answer.set) do ngx.header[header[1]] = header[2] end
  -- Bytes may be taken out; otherwise the length stands, and nginx need not chunk.
  if answer.strips then ngx.header.content_length = nil end
end

--- body_filter_by_lua.
function _M.body_filter()
  local held = open[ngx.var.weir_id or ""]
  if not held or not held.answered then return end
  local chunk, last = ngx.arg[1], ngx.arg[2]
  if chunk == "" and not last then return end
  if held.stopped then
    ngx.arg[1] = nil
    return
  end
  local out, stop = held.request:feed(chunk, last)
  if not out then return log(ngx.ERR, stop) end
  if out ~= chunk then ngx.arg[1] = out end
  if last then held.complete = true end
  if stop then
    held.stopped = true
    ngx.arg[2] = true
  end
end

--- log_by_lua: the row, whatever happened.
function _M.log()
  local id = ngx.var.weir_id or ""
  local held = open[id]
  if not held then return end
  open[id] = nil
  local gone = ngx.status == 499 or (held.answered and not held.complete and not held.stopped)
  local row, why = held.request:finish { status = ngx.status, client_gone = gone, complete = held.complete }
  held.request:free()
  if row then node:hand_over(row) else log(ngx.ERR, why or "no row") end
end

--- content_by_lua of a page for Prometheus: this worker's numbers.
function _M.metrics()
  ngx.header["Content-Type"] = "text/plain; version=0.0.4"
  ngx.print(engine and engine:metrics() or "")
end

--- The engine, for other modules in this worker.
function _M.engine() return engine end

return _M
