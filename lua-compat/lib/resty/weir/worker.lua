--- What a worker holds, and what becomes of a request: the same in every proxy. An adapter says where its proxy keeps a request
-- and how it is told where to send it.

local balancer = require "ngx.balancer"
local weir = require "resty.weir"
local weir_node = require "resty.weir.node"

local _M = {}

--- What the client gets when weir itself fails: status, headers, body.
_M.BROKEN = {
  kind = "refuse", status = 500, headers = { { "Content-Type", "application/json" } },
  body = '{"error":{"message":"Internal error.","type":"server_error","param":null,"code":null}}',
}

function _M.log(level, ...) ngx.log(level, "weir: ", ...) end

local log = _M.log

local Worker = {}
Worker.__index = Worker

--- A request under way. Its fields: request (the binding's), answered, begun, flushes, complete, stopped, refused, refusal, instead.
local Held = {}
Held.__index = Held

--- In init_worker, never before the fork. `settings`: routing, prices; node (an address) or nil; when_node_is_away; journal (a path);
-- credit; remember_s; library; on_row (a function that gets each row). Returns nil and why on a failure.
function _M.open(settings)
  local engine, why = weir.open {
    routing = settings.routing, prices = settings.prices, credit = settings.credit, node = settings.node ~= nil,
    when_node_is_away = settings.when_node_is_away, remember_s = settings.remember_s, library = settings.library,
  }
  if not engine then return nil, why end
  local node = weir_node.new(settings)
  node:start()
  return setmetatable({ engine = engine, node = node }, Worker)
end

--- Begins a request and asks the node, if there is one. `asked` is the engine's (see resty.weir). Returns what is held and the first
-- step, or nil and why.
function Worker:begin(asked)
  asked.method = asked.method or ngx.req.get_method()
  local request, step = self.engine:begin(asked)
  if not request then return nil, step end
  local held = setmetatable({ request = request, worker = self }, Held)
  if step.kind == "admit" then
    local status, answer = self.node:ask("/plugin/v1/admit", step.body)
    if not status then log(ngx.WARN, "the node is away: ", answer) end
    local why
    step, why = request:admitted(status or 0, status and answer or "")
    if not step then return held, nil, why end
  end
  return held, step
end

--- The whole body of the client's request, from memory or from disk.
function _M.read_body()
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

--- What the upstream's variables say of the last attempt and of the one before it.
local function last_two(list)
  return (list or ""):match("([^%s,:]*)[%s,:]*([^%s,:]+)$")
end

--- In a balancer phase: how the attempt failed before the one that is to begin. For request:next.
function _M.last_failure()
  local _, status = balancer.get_last_failure()
  -- The last place in the list is the attempt's that begins.
  local before = last_two(ngx.var.upstream_header_time)
  local wait = tonumber(ngx.var.upstream_http_retry_after)
  return { status = status, from_upstream = before ~= "-", retry_after_ms = wait and wait * 1000 }
end

local function change_headers(answer)
  for _, name in ipairs(answer.remove) do ngx.header[name] = nil end
  for _, header in ipairs(answer.set) do ngx.header[header[1]] = header[2] end
  -- Bytes may be taken out; otherwise the length stands, and nginx need not chunk.
  if answer.strips then ngx.header.content_length = nil end
end

--- In a header filter: an answer begins that goes to the client. `seen`: provider and model of one that is only observed.
function Held:header_filter(seen)
  if self.refused or self.answered then return end
  local answer, why = self.request:answer(ngx.status, ngx.resp.get_headers(0, true), seen)
  if not answer then return log(ngx.ERR, why) end
  self.answered = true
  change_headers(answer)
end

--- Puts a refusal in the place of an answer whose headers have not left.
local function replace(self, step)
  local answer, why = self.request:answer(step.status, ngx.resp.get_headers(0, true))
  if answer then change_headers(answer) else log(ngx.ERR, why) end
  ngx.status = step.status
  ngx.header["Content-Encoding"] = nil
  for _, header in ipairs(step.headers) do ngx.header[header[1]] = header[2] end
  ngx.header["Content-Length"] = #step.body
  self.refused, self.instead = true, step.body
end

--- In the header filter of a proxy that retries in its balancer: an answer passes, and so does an error that is the caller's own; of
-- any other error weir tells.
function Held:end_of_retries()
  -- Nobody was asked: what goes out is another plugin's.
  if self.refused or self.answered or (ngx.var.upstream_status or "") == "" then return end
  local _, time = last_two(ngx.var.upstream_header_time)
  local answered, step = time ~= "-", self.refusal
  if not step and (ngx.status >= 400 or not answered) then
    local wait = tonumber(ngx.var.upstream_http_retry_after)
    local why
    step, why = self.request:next { status = ngx.status, from_upstream = answered, last = true, retry_after_ms = wait and wait * 1000 }
    if not step then
      log(ngx.ERR, why)
      step = _M.BROKEN
    end
  end
  if step and step.kind == "refuse" then return replace(self, step) end
  self:header_filter()
end

--- A timer's work: asks the node to extend a stream's reservation. The request may have ended meanwhile; then its answer is nobody's.
local function extend(_, held, asked)
  local status, answer = held.worker.node:ask("/plugin/v1/extend", asked)
  if held.request.handle then held.request:extended(status or 0, status and answer or "") end
end

--- In a body filter: counts ngx.arg[1] and puts there what goes out.
function Held:body_filter()
  if self.instead then
    ngx.arg[1], ngx.arg[2] = self.instead, true
    self.instead = ""
    return
  end
  if not self.answered then return end
  local chunk, last = ngx.arg[1] or "", ngx.arg[2]
  if chunk == "" and not last then
    self.flushes = (self.flushes or 0) + 1
    return
  end
  self.flushes, self.begun = 0, true
  if self.stopped then
    ngx.arg[1] = nil
    return
  end
  local out, stop, wants_more = self.request:feed(chunk, last)
  if not out then return log(ngx.ERR, stop) end
  if wants_more and not last then
    local asked = self.request:extension()
    if asked and not ngx.timer.at(0, extend, self, asked) then self.request:extended(0) end
  end
  if out ~= chunk then ngx.arg[1] = out end
  if last then self.complete = true end
  if stop then
    self.stopped = true
    ngx.arg[2] = true
  end
end

local PROMPT = { "input", "image_input", "audio_input", "cached_input", "cached_audio_input", "cache_write_5m", "cache_write_1h" }
local COMPLETION = { "output", "reasoning", "audio_output", "image_output" }

--- Tokens of the prompt and of the completion by a row's usage.
function _M.tokens(usage)
  local prompt, completion = 0, 0
  for _, bucket in ipairs(PROMPT) do prompt = prompt + (usage[bucket] or 0) end
  for _, bucket in ipairs(COMPLETION) do completion = completion + (usage[bucket] or 0) end
  return prompt, completion
end

--- Whether it was the upstream that broke off. nginx flushes once when an answer begins without a body yet, and once more when it gives
-- one up for the upstream's sake; when the client has gone there is nobody to flush to.
local function is_broken_off(self)
  return (self.flushes or 0) > (self.begun and 0 or 1)
end

--- In the log phase, whatever happened: hands the row over and frees the request. Returns the row.
function Held:finish(status)
  local gone = status == 499 or (self.answered and not self.complete and not self.stopped and not is_broken_off(self))
  local row, why, code = self.request:finish { status = status, client_gone = gone, complete = self.complete }
  self.request:free()
  if row then
    self.worker.node:hand_over(row)
  elseif code ~= weir.NO_ROW then
    log(ngx.ERR, why or "no row")
  end
  return row
end

return _M
