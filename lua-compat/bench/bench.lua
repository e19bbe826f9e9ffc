-- What a decision and a chunk cost, beside pure Lua doing the same work: nanoseconds of CPU time a call.
--
--   cargo build --release -p libweir
--   WEIR_LIBRARY=target/release/libweir_ffi.so luajit lua-compat/bench/bench.lua           compiled
--   WEIR_LIBRARY=target/release/libweir_ffi.so luajit -joff lua-compat/bench/bench.lua     interpreted
--
-- The first argument is how many calls a round has (100000). Each line is the best of five rounds.

local here = arg[0]:match("^(.*/)bench/") or "./"
package.path = here .. "lib/?.lua;" .. package.path

local ffi = require "ffi"
local cjson = require "cjson"
local weir = require "resty.weir"

local CALLS = tonumber(arg[1]) or 100000
local ROUNDS = 5

ffi.cdef [[
typedef struct { long seconds, nanoseconds; } weir_bench_time;
int clock_gettime(int clock, weir_bench_time *time);
]]

local time = ffi.new "weir_bench_time"
local CLOCK_THREAD_CPUTIME_ID = 3 -- clock_gettime(2), linux/time.h

local function cpu_ns()
  ffi.C.clock_gettime(CLOCK_THREAD_CPUTIME_ID, time)
  return tonumber(time.seconds) * 1e9 + tonumber(time.nanoseconds)
end

local function measure(what, calls, call)
  local best = math.huge
  for _ = 1, ROUNDS do
    collectgarbage()
    local start = cpu_ns()
    for _ = 1, calls do call() end
    best = math.min(best, (cpu_ns() - start) / calls)
  end
  print(("%-58s %9.0f"):format(what, best))
  return best
end

local function write(text)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(text)
  file:close()
  return name
end

-- A configuration of some size: what is measured must not depend on there being one of everything.
local key = write "sk-bench-aaaaaaaaaaaaaaaaaaaaaaaa"
local routing, prices = {}, {}
for provider = 1, 8 do
  routing[#routing + 1] = ('[provider.p%d]\nkind = "openai"\nbase_url = "http://p%d.test/v1"\nkey = "file:%s"\n'):format(provider, provider, key)
end
for model = 1, 100 do
  local first, second = model % 8 + 1, (model + 1) % 8 + 1
  routing[#routing + 1] = ('[model."m%d"]\ntargets = [{ provider = "p%d", model = "up-%d", weight = 80 }, { provider = "p%d", model = "up-%d", weight = 20 }]\n'):format(model, first, model, second, model)
  for _, provider in ipairs { first, second } do
    prices[#prices + 1] = ('[price."p%d/up-%d"]\ninput = "0.15"\ncached_input = "0.075"\noutput = "0.60"\n'):format(provider, model)
  end
end
local files = { write(table.concat(routing)), write(table.concat(prices)) }
local engine = assert(weir.open { routing = files[1], prices = files[2], library = os.getenv "WEIR_LIBRARY" })

-- Past the binding, for its share.
local library = ffi.load(os.getenv "WEIR_LIBRARY")
local buffer, length, handle, step = ffi.new "uint8_t[131072]", ffi.new "size_t[1]", ffi.new "weir_request *[1]", ffi.new "weir_step"

local function body_of(bytes)
  return cjson.encode {
    model = "m42", stream = true, temperature = 0.5, max_tokens = 500,
    messages = { { role = "system", content = "You are terse." }, { role = "user", content = ("What is a weir, and who builds them? "):rep(math.ceil(bytes / 37)) } },
  }
end

local HEADERS = { authorization = "Bearer wk_0123456789abcdef", ["content-type"] = "application/json", accept = "text/event-stream", ["user-agent"] = "bench/1" }
local EVENT = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"up-42","choices":[{"index":0,"delta":{"content":" river"},"finish_reason":null}]}\n\n'
local FINISH = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"up-42","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
local USAGE = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"up-42","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":100,"total_tokens":120}}\n\n'
local DONE = "data: [DONE]\n\n"

-- The same in Lua: the least that routes and counts. A table of models, a weighted draw, the body read and written again, the key put in;
-- of each event its text and, at the end, the usage.
local lua = { models = {}, keys = {} }
for provider = 1, 8 do lua.keys["p" .. provider] = "sk-bench-aaaaaaaaaaaaaaaaaaaaaaaa" end
for model = 1, 100 do
  lua.models["m" .. model] = { { provider = "p" .. model % 8 + 1, model = "up-" .. model, weight = 80 }, { provider = "p" .. (model + 1) % 8 + 1, model = "up-" .. model, weight = 20 } }
end

function lua.decide(headers, body)
  local document = cjson.decode(body)
  local text = 0
  for _, message in ipairs(document.messages) do text = text + #message.content end
  local draw, target = math.random(100), nil
  for _, candidate in ipairs(lua.models[document.model]) do
    target = candidate
    draw = draw - candidate.weight
    if draw <= 0 then break end
  end
  document.model = target.model
  document.stream_options = { include_usage = true }
  local out = {}
  for name, value in pairs(headers) do out[name] = value end
  out.authorization = "Bearer " .. lua.keys[target.provider]
  return target.provider, out, cjson.encode(document), math.ceil(text / 4)
end

function lua.feed(state, chunk)
  state.rest = state.rest .. chunk
  while true do
    local stop, after = state.rest:find("\n\n", 1, true)
    if not stop then return chunk end
    local data = state.rest:match("^data: ?(.-)\n", 1)
    state.rest = state.rest:sub(after + 1)
    if data and data ~= "[DONE]" then
      local event = cjson.decode(data)
      local choice = event.choices[1]
      if choice and choice.delta.content then state.text = state.text + #choice.delta.content end
      if event.usage then state.usage = event.usage end
    end
  end
end

print(("%s, %s; nanoseconds of CPU a call"):format(jit.version, jit.status() and "compiled" or "interpreted"))

for _, bytes in ipairs { 100, 4096, 65536 } do
  local body = body_of(bytes)
  local calls = math.max(math.floor(CALLS / math.max(1, bytes / 1000)), 1)
  local asked = { path = "/v1/chat/completions", headers = HEADERS, body = body }
  measure(("decide, %d B: plan, key, edited body, and freed"):format(#body), calls, function()
    local request = engine:begin(asked)
    request:body()
    request:free()
  end)
  local lines = { asked.path }
  for name, value in pairs(HEADERS) do lines[#lines + 1] = name .. ": " .. value end
  local head = table.concat(lines, "\n")
  measure("  the library's part of it", calls, function()
    library.weir_request_begin(engine.handle, head, #head, body, #body, handle, step, buffer, 131072, length)
    library.weir_request_free(handle[0])
  end)
  measure("  pure Lua with cjson", calls, function() lua.decide(HEADERS, body) end)
end

local SSE = { ["content-type"] = "text/event-stream" }
local function streaming()
  local request = engine:begin { path = "/v1/chat/completions", headers = HEADERS, body = body_of(100) }
  request:answer(200, SSE)
  return request
end

local request = streaming()
measure(("feed, an event of %d B"):format(#EVENT), CALLS, function() request:feed(EVENT, false) end)
request:free()
local state = { rest = "", text = 0 }
measure("  pure Lua with cjson", CALLS, function() lua.feed(state, EVENT) end)

measure("a stream of 100 events, begin to row", math.max(math.floor(CALLS / 200), 1), function()
  local whole = streaming()
  for _ = 1, 100 do whole:feed(EVENT, false) end
  for _, chunk in ipairs { FINISH, USAGE, DONE } do whole:feed(chunk, false) end
  whole:feed("", true)
  assert(whole:finish { status = 200, complete = true })
  whole:free()
end)

for _, name in ipairs { key, files[1], files[2] } do os.remove(name) end
