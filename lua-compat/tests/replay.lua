-- The same as examples/replay.rs, through the binding.
local cjson = require "cjson"
local weir = require "resty.weir"

-- As nginx/nginx.conf has it in error_page.
local RETRIED = {}
for _, status in ipairs { 401, 402, 403, 408, 429, 500, 502, 503, 504, 529 } do RETRIED[status] = true end

local engine = assert(weir.open(cjson.decode(arg[1])))

local function pairs_of(list)
  local map = {}
  for _, pair in ipairs(list) do map[pair[1]] = pair[2] end
  return map
end

local function replay(exchange)
  local body = exchange.body
  local request, step = engine:begin { path = exchange.path, headers = exchange.headers, body = body }
  if not request then error(step) end
  if step.kind == "admit" then step = assert(request:admitted(200, exchange.admission)) end
  local attempts = {}
  while step.kind == "try" do
    local kept = {}
    for name, value in pairs(exchange.headers) do kept[name] = value end
    for _, name in ipairs(step.remove) do kept[name] = nil end
    step:set_headers(function(name, value) kept[name] = value end)
    attempts[#attempts + 1] = { path = step.uri, headers = kept, body = step.body_bytes and assert(request:body()) or body }
    local answer = assert(exchange.answers[#attempts], "an answer for each attempt")
    if RETRIED[answer.status] then
      step = assert(request:next { status = answer.status, from_upstream = true })
    else
      local told = pairs_of(assert(request:answer(answer.status, answer.headers)).set)
      local out = {}
      for _, piece in ipairs(answer.events or { answer.body }) do out[#out + 1] = assert(request:feed(piece, false)) end
      if not answer.cut then out[#out + 1] = assert(request:feed("", true)) end
      local row = request:finish { status = answer.status, complete = not answer.cut }
      request:free()
      return { attempts = attempts, status = answer.status, body = table.concat(out), told = told, row = row }
    end
  end
  local row = request:finish { status = step.status, complete = true }
  request:free()
  return { attempts = attempts, status = step.status, body = step.body, told = pairs_of(step.headers), row = row }
end

for line in io.lines() do print(cjson.encode(replay(cjson.decode(line)))) end
