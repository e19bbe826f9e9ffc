--- A weir node behind its plugin socket, and a worker's rows on their way to it.
--
-- A row waits in memory for a timer that hands it over; while the node is away, in a journal, a file for each worker. Without a node
-- the journal is where rows go.

local _M = {}

-- A node answers from memory; beyond this it is away. Connect, send, read, in milliseconds.
local TIMEOUTS = { 250, 500, 1000 }
-- Connections to the node kept by a worker, and for how long (below the node's own idle time).
local POOL, IDLE_MS = 16, 30000
-- Rows are handed to the node by a timer: this many wait in a worker at most, then they go to the journal.
local ROWS_WAITING_MAX = 4096
-- The journal is delivered this often.
local DELIVER_SECONDS = 1

local function log(level, ...) ngx.log(level, "weir: ", ...) end

local Node = {}
Node.__index = Node

--- `settings`: node (the socket's address) or nil, journal (a path) or nil, on_row (a function) or nil.
function _M.new(settings)
  return setmetatable({ address = settings.node, journal = settings.journal, on_row = settings.on_row, waiting = {}, sending = false }, Node)
end

--- One exchange with the node. Returns status and body, or nil and why.
function Node:ask(path, body)
  local socket = ngx.socket.tcp()
  socket:settimeouts(TIMEOUTS[1], TIMEOUTS[2], TIMEOUTS[3])
  local ok, why = socket:connect(self.address)
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
  socket:setkeepalive(IDLE_MS, POOL)
  return status, answer
end

--- Appends rows to the worker's journal. A row is a line well below what one write may carry whole.
local function keep(self, rows)
  if not self.journal then
    for _, row in ipairs(rows) do log(ngx.ERR, "row without a journal: ", row) end
    return
  end
  local file, why = io.open(self.journal .. "." .. ngx.worker.id(), "a")
  if not file then return log(ngx.ERR, "journal: ", why) end
  for _, row in ipairs(rows) do file:write(row, "\n") end
  file:close()
end

--- Sends what waits to the node, in order; what cannot be sent goes to the journal.
local function send_rows(_, self)
  while #self.waiting > 0 do
    local batch = self.waiting
    self.waiting = {}
    for index, row in ipairs(batch) do
      local status = self:ask("/plugin/v1/settle", row)
      if status ~= 200 then
        local rest = {}
        for later = index, #batch do rest[#rest + 1] = batch[later] end
        keep(self, rest)
        break
      end
    end
  end
  self.sending = false
end

local function deliver(_, self)
  local name = self.journal .. "." .. ngx.worker.id()
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
    if self:ask("/plugin/v1/settle", row) ~= 200 then
      -- Those the node has taken stay in the file and are sent again: it knows them by their id.
      if index > 1 then log(ngx.WARN, "the node went away while the journal was delivered") end
      return
    end
  end
  os.remove(taken)
end

--- Takes the row of a request that has ended.
function Node:hand_over(row)
  if self.on_row then self.on_row(row) end
  if not self.address then
    if self.journal then keep(self, { row }) end
    return
  end
  if #self.waiting >= ROWS_WAITING_MAX then return keep(self, { row }) end
  self.waiting[#self.waiting + 1] = row
  if not self.sending then
    self.sending = true
    local ok = ngx.timer.at(0, send_rows, self)
    if not ok then
      self.sending = false
      keep(self, self.waiting)
      self.waiting = {}
    end
  end
end

--- Begins to deliver what the journal holds, from now on.
function Node:start()
  if self.address and self.journal then ngx.timer.every(DELIVER_SECONDS, deliver, self) end
end

return _M
