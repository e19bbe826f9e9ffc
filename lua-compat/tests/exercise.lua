-- Every call of the binding, for valgrind: what is read is written before, and what is taken is given back.
local weir = require "resty.weir"

local routing, prices, library = arg[1], arg[2], arg[3]
local BODY = '{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
local CONTENT = 'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
local REST = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\ndata: [DONE]\n\n'
local ADMISSION = '{"request_id":"01J","account":"acme","key_id":"k1","tier":null,"scopes":{},"has_budget":true,"draw":1,"covered_tokens":20,"headers":{},"keys":[{"provider":"one","own":false,"key":"sk-node"}]}'

local function ask(engine, body)
  return assert(engine:begin { path = "/v1/chat/completions", headers = { authorization = "Bearer wk_client" }, body = body or BODY })
end

assert(not weir.open { routing = "/nowhere", prices = prices, library = library })
for _, node in ipairs { false, true } do
  local engine = assert(weir.open { routing = routing, prices = prices, library = library, node = node })
  for _ = 1, 20 do
    local request = ask(engine)
    if node then
      assert(request:admitted(200, ADMISSION).kind == "try")
    end
    assert(#request:body() > 0)
    assert(request:next { status = 503, from_upstream = true, error = '{"error":{"message":"no"}}' })
    assert(request:finish { status = 502 })
    request:free()

    request = ask(engine)
    if node then request:admitted(200, ADMISSION) end
    assert(request:answer(200, { ["content-type"] = "text/event-stream" }))
    for _ = 1, 5 do
      local _, _, extend = request:feed(CONTENT, false)
      if extend then
        assert(request:extension())
        assert(request:extended(200, '{"covered_tokens":100}'))
      end
    end
    for at = 1, #REST, 7 do assert(request:feed(REST:sub(at, at + 6), false)) end
    request:feed("", true)
    assert(request:finish { status = 200, complete = true })
    assert(not request:finish { status = 200 })
    request:free()
  end
  ask(engine, "\0\255"):free()
  -- Left to the collector, and larger than the buffer.
  ask(engine, '{"model":"m","messages":[{"role":"user","content":"' .. ("x"):rep(100000) .. '"}]}')
  assert(engine:generation() == 1 and engine:problems() == "" and #engine:metrics() > 0)
  collectgarbage()
  engine:close()
end
