--- A weir node behind its plugin socket, and a worker's rows on their way to it.
--
-- A row waits in memory for a timer that hands it over; while the node is away, in a journal, a file for each worker. Without a node
-- the journal is where rows go.
--
-- The node takes a row once for each request id, so that all there is to do here is to send again until it has said yes. A file that is
-- being delivered has the name <journal>.<worker>.sending; rows the node will never take are put in <journal>.refused, for people.

local _M = {}

-- A node answers from memory; beyond this it is away. To connect, and for the whole of an exchange, in milliseconds.
local CONNECT_MS, EXCHANGE_MS = 250, 1500
-- Connections to the node kept by a worker, and for how long (below the node's own idle time).
local POOL, IDLE_MS = 16, 30000
-- Rows are handed to the node by a timer: this many wait in a worker at most, then they go to the journal.
local ROWS_WAITING_MAX = 4096
-- Rows that were given to a timer so long ago were given to one that never ran.
local SENDING_MAX_S = 300
-- The journal is delivered this often. A worker that begins waits as long before it takes over its predecessor's.
local DELIVER_SECONDS = 1
-- Journals of workers that are no more are looked for up to here.
local WORKERS_MAX = 255

local function log(level, ...) ngx.log(level, "weir: ", ...) end

local Node = {}
Node.__index = Node

--- `settings`: node (the socket's address) or nil, journal (a path) or nil, on_row (a function) or nil.
function _M.new(settings)
  return setmetatable({ address = settings.node, journal = settings.journal, on_row = settings.on_row, waiting = {}, sending = false }, Node)
end

--- One exchange on one connection. Returns status and body; or nil, why, and whether the connection was an old one that the node had
-- closed before it saw the request.
local function exchange(self, request)
  local socket, deadline = ngx.socket.tcp(), ngx.now() * 1000 + EXCHANGE_MS
  local function left()
    ngx.update_time()
    return math.max(deadline - ngx.now() * 1000, 1)
  end
  socket:settimeouts(CONNECT_MS, EXCHANGE_MS, EXCHANGE_MS)
  local ok, why = socket:connect(self.address)
  if not ok then return nil, why end
  local is_old = socket:getreusedtimes() > 0
  local function receive(what)
    socket:settimeout(left())
    local got, failure = socket:receive(what)
    if not got then socket:close() end
    return got, failure
  end
  ok, why = socket:send(request)
  local line = ok and receive("*l")
  if not line then
    socket:close()
    return nil, why or "no answer", is_old and left() > 1
  end
  local status, size = tonumber(line:match("^HTTP/1%.%d (%d+)")), 0
  repeat
    line, why = receive("*l")
    if not line then return nil, why end
    size = tonumber(line:lower():match("^content%-length:%s*(%d+)")) or size
  until line == ""
  local answer = ""
  if size > 0 then
    answer, why = receive(size)
    if not answer then return nil, why end
  end
  socket:setkeepalive(IDLE_MS, POOL)
  return status, answer
end

--- Asks the node. Returns status and body, or nil and why.
function Node:ask(path, body)
  local request = "POST " .. path .. " HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
  local status, answer, again = exchange(self, request)
  if again then status, answer = exchange(self, request) end
  return status, answer
end

--- Appends rows to a file, each with one write: another worker may append to it, too, while workers are replaced.
local function append(name, rows)
  local file, why = io.open(name, "a")
  if file then file:setvbuf("no") end
  for _, row in ipairs(rows) do
    local ok
    if file then ok, why = file:write(row .. "\n") end
    -- The last place that is left for it. There is nothing in a row that was said.
    if not ok then log(ngx.ERR, "journal: ", why, "; row: ", row) end
  end
  if file then file:close() end
end

local function keep(self, rows)
  if self.journal then return append(self.journal .. "." .. ngx.worker.id(), rows) end
  for _, row in ipairs(rows) do log(ngx.ERR, "row without a journal: ", row) end
end

--- Hands rows over, in order. Returns how many are done with.
local function hand(self, rows)
  for index, row in ipairs(rows) do
    local status = self:ask("/plugin/v1/settle", row)
    if status == 400 then
      log(ngx.ERR, "the node takes no such row: ", row)
      if self.journal then append(self.journal .. ".refused", { row }) end
    elseif status ~= 200 then
      return index - 1
    end
  end
  return #rows
end

--- Sends what waits to the node; what cannot be sent goes to the journal.
local function send_rows(_, self)
  while #self.waiting > 0 do
    self.sending = ngx.now()
    local rows = self.waiting
    self.waiting = {}
    local done = hand(self, rows)
    if done < #rows then keep(self, { unpack(rows, done + 1) }) end
  end
  self.sending = false
end

--- Delivers the journal of one worker.
local function deliver_of(self, id)
  local name = self.journal .. "." .. id
  local taken = name .. ".sending"
  local file = io.open(taken, "r") or (os.rename(name, taken) and io.open(taken, "r"))
  if not file then return end
  local rows = {}
  for row in file:lines() do rows[#rows + 1] = row end
  file:close()
  -- What the node has taken stays in the file until all is done, and is sent again if need be. A worker that is being replaced leaves
  -- the file to its successor: both could remove it.
  if hand(self, rows) == #rows and not ngx.worker.exiting() then os.remove(taken) end
end

local function deliver(premature, self)
  if premature or self.delivering or self.closed then return end
  self.delivering = true
  local ok, why = pcall(deliver_of, self, ngx.worker.id())
  self.delivering = false
  if not ok then log(ngx.ERR, "journal: ", why) end
end

--- Once, by the first worker: what workers left that are no more.
local function deliver_left(premature, self)
  if premature then return end
  for id = ngx.worker.count(), WORKERS_MAX do deliver_of(self, id) end
end

--- Takes the row of a request that has ended.
function Node:hand_over(row)
  if self.on_row then
    local ok, why = pcall(self.on_row, row)
    if not ok then log(ngx.ERR, "on_row: ", why) end
  end
  if not self.address then
    if self.journal then keep(self, { row }) end
    return
  end
  if #self.waiting >= ROWS_WAITING_MAX then return keep(self, { row }) end
  self.waiting[#self.waiting + 1] = row
  -- A timer that nginx dropped (it does where too many run) never says so.
  if not self.sending or ngx.now() - self.sending > SENDING_MAX_S then
    self.sending = ngx.now()
    local ok = ngx.timer.at(0, send_rows, self)
    if not ok then
      self.sending = false
      keep(self, self.waiting)
      self.waiting = {}
    end
  end
end

--- Begins to deliver what the journal holds, from now on. Not in a privileged agent: it serves nobody and has no number.
function Node:start()
  if not self.address or not self.journal or not ngx.worker.id() then return end
  ngx.timer.every(DELIVER_SECONDS, deliver, self)
  if ngx.worker.id() == 0 then ngx.timer.at(DELIVER_SECONDS, deliver_left, self) end
end

--- Delivers no more: another has taken over. What waits is still handed over.
function Node:close() self.closed = true end

return _M
