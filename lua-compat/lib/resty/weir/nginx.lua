--- The phases of a request in stock nginx with ngx_lua; see nginx/nginx.conf for how they are wired.
--
-- One upstream block a provider, named weir_<provider>, so that no two hosts share kept connections: nginx 1.22 tells TLS
-- connections apart by address alone. A retry goes through error_page to a named location, where the upstream request is made
-- anew: no provider sees another's key or Host.

local weir = require "resty.weir"

local _M = {}

-- A node answers from memory; beyond this it is away. Connect, send, read, in milliseconds.
local NODE_TIMEOUTS = { 250, 500, 1000 }
-- Connections to the node kept by a worker, and for how long (below the node's own idle time).
local NODE_POOL, NODE_IDLE_MS = 16, 30000
-- Rows are handed to the node by a timer: this many wait in a worker at most, then they go to the journal.
local ROWS_WAITING_MAX = 4096
-- The journal is delivered this often.
local DELIVER_SECONDS = 1

local engine, settings
local open = {}
local waiting, sending = {}, false

local function log(level, ...) ngx.log(level, "weir: ", ...) end

--- One exchange with the node. Returns status and body, or nil and why.
local function node(path, body)
  local socket = ngx.socket.tcp()
  socket:settimeouts(NODE_TIMEOUTS[1], NODE_TIMEOUTS[2], NODE_TIMEOUTS[3])
  local ok, why = socket:connect(settings.node)
  if not ok then return nil, why end
  ok, why = socket:send("POST " .. path .. " HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body)
  if not ok then return nil, why end
  local line
  line, why = socket:receive("*l")
  if not line then return nil, why end
  local status = tonumber(line:match("^HTTP/1%.%d (%d+)"))
  local size = 0
  repeat
    line, why = socket:receive("*l")
    if not line then return nil, why end
    size = tonumber(line:lower():match("^content%-length:%s*(%d+)")) or size
  until line == ""
  local answer = ""
  if size > 0 then
    answer, why = socket:receive(size)
    if not answer then return nil, why end
  end
  socket:setkeepalive(NODE_IDLE_MS, NODE_POOL)
  return status, answer
end

--- Appends rows to the worker's journal. A row is a line well below what one write may carry whole.
local function journal(rows)
  if not settings.journal then
    for _, row in ipairs(rows) do log(ngx.ERR, "row without a journal: ", row) end
    return
  end
  local file, why = io.open(settings.journal .. "." .. ngx.worker.id(), "a")
  if not file then return log(ngx.ERR, "journal: ", why) end
  for _, row in ipairs(rows) do file:write(row, "\n") end
  file:close()
end

--- Sends what waits to the node, in order; what cannot be sent goes to the journal.
local function send_rows()
  while #waiting > 0 do
    local batch = waiting
    waiting = {}
    for index, row in ipairs(batch) do
      local status = node("/plugin/v1/settle", row)
      if status ~= 200 then
        local rest = {}
        for later = index, #batch do rest[#rest + 1] = batch[later] end
        journal(rest)
        break
      end
    end
  end
  sending = false
end

local function deliver()
  local name = settings.journal .. "." .. ngx.worker.id()
  local taken = name .. ".sending"
  local file = io.open(taken, "r")
  if not file then
    if not os.rename(name, taken) then return end
    file = io.open(taken, "r")
    if not file then return end
  end
  local rows = {}
  for row in file:lines() do rows[#rows + 1] = row end
  file:close()
  for index, row in ipairs(rows) do
    -- The node takes a row once, so that one sent twice after a crash counts once.
    if node("/plugin/v1/settle", row) ~= 200 then
      -- Those the node has taken stay in the file and are sent again: it knows them by their id.
      if index > 1 then log(ngx.WARN, "the node went away while the journal was delivered") end
      return
    end
  end
  os.remove(taken)
end

local function hand_over(row)
  if settings.on_row then settings.on_row(row) end
  if not settings.node then
    if settings.journal then journal { row } end
    return
  end
  if #waiting >= ROWS_WAITING_MAX then return journal { row } end
  waiting[#waiting + 1] = row
  if not sending then
    sending = true
    local ok = ngx.timer.at(0, send_rows)
    if not ok then
      sending = false
      journal(waiting)
      waiting = {}
    end
  end
end

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
  if given.node and given.journal then ngx.timer.every(DELIVER_SECONDS, deliver) end
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
    local status, answer = node("/plugin/v1/admit", step.body)
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
  if row then hand_over(row) else log(ngx.ERR, why or "no row") end
end

--- content_by_lua of a page for Prometheus: this worker's numbers.
function _M.metrics()
  ngx.header["Content-Type"] = "text/plain; version=0.0.4"
  ngx.print(engine and engine:metrics() or "")
end

--- The engine, for other modules in this worker.
function _M.engine() return engine end

return _M
