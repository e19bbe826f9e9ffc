local weir = require "resty.weir"

local function write(text)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(text)
  file:close()
  return name
end

local KEY = write "sk-test-aaaaaaaaaaaaaaaa"
--- One provider, with the key in a file if there is one, and one model.
local function routing(kind, host, key)
  return ([[
[provider.one]
kind = "%s"
base_url = "http://%s/v1"
%s
[model.m]
targets = [{ provider = "one", model = "m-upstream", price = "free" }]
]]):format(kind, host, key and ('key = "file:%s"'):format(key) or "")
end

local ROUTING = write(routing("openai-compatible", "one.test", KEY))
local PRICES = write ""
local LIBRARY = assert(os.getenv "WEIR_LIBRARY")

local function open(more)
  local settings = { routing = ROUTING, prices = PRICES, library = LIBRARY }
  for name, value in pairs(more or {}) do settings[name] = value end
  return weir.open(settings)
end

local function ask(engine, more)
  local asked = { path = "/v1/chat/completions", headers = { authorization = "Bearer wk_client" }, body = '{"model":"m","stream":true,"messages":[]}' }
  for name, value in pairs(more or {}) do asked[name] = value end
  return engine:begin(asked)
end

local CONTENT = 'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
local FINISH = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
local USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
local DONE = "data: [DONE]\n\n"

describe("resty.weir", function()
  it("takes a step apart the same before and beyond what it keeps of them", function()
    local engine = assert(open())
    -- More lists of names than are kept, the first of them again at the end, and one that is too long to be.
    for index = 1, 1102 do
      local name = "x-" .. (index == 1102 and 1 or index)
      local request, step = ask(engine, { headers = { connection = name, [name] = "1" } })
      local removed = table.concat(step.remove, " ")
      assert.matches(" " .. name .. " ", " " .. removed .. " ", 1, true)
      assert.equal(5, #step.remove, removed)
      request:free()
    end
    local names, headers = {}, {}
    for index = 1, 100 do
      names[index] = ("x-%020d"):format(index)
      headers[names[index]] = "1"
    end
    headers.connection = table.concat(names, ",")
    for _ = 1, 2 do
      local request, step = ask(engine, { headers = headers })
      assert.equal(104, #step.remove)
      assert.equal("one", step.provider)
      request:free()
    end
    engine:close()
  end)

  it("asks for a target again once its configuration was loaded again", function()
    local path = write(routing("openai-compatible", "before.test"))
    local engine = assert(open { routing = path })
    for _ = 1, 2 do
      local request, step = ask(engine)
      assert.same({ "before.test", nil }, { step.host, step.key })
      request:free()
    end
    local before = engine:generation()
    local file = assert(io.open(path, "w"))
    file:write(routing("openai-compatible", "after-a-while.test"))
    file:close()
    local deadline = os.time() + 10
    while engine:generation() == before and os.time() < deadline do os.execute "sleep 0.02" end
    local request, step = ask(engine)
    assert.same({ "after-a-while.test", "after-a-while.test", 80 }, { step.host, step.authority, step.port })
    request:free()
    engine:close()
  end)

  it("takes no name of a model for a place", function()
    local engine = assert(open { routing = write(routing("openai", "one.test", KEY)) })
    -- A name nobody configured is inferred to be OpenAI's; it must not end one line and begin others.
    for _, name in ipairs { [[gpt-4o\nhttp\nevil.test\nevil.test\n80\n9\n9\n9]], [[gpt-4o\r\nevil.test]], [[gpt-4o\u0000]], [[gpt-4o evil]] } do
      local request, step = ask(engine, { body = '{"model":"' .. name .. '","messages":[]}' })
      assert.same({ "refuse", 404 }, { step.kind, step.status })
      request:free()
    end
    local request, step = ask(engine, { body = '{"model":"gpt-4o","messages":[]}' })
    assert.same({ "try", "one.test", "gpt-4o" }, { step.kind, step.host, step.model })
    request:free()
    engine:close()
  end)

  it("tells what is wrong with settings and files", function()
    local engine, why = open { routing = "/nowhere/routing.toml" }
    assert.is_nil(engine)
    assert.matches("/nowhere/routing.toml", why, 1, true)
    engine, why = open { when_node_is_away = "hope" }
    assert.is_nil(engine)
    assert.matches("config_only", why, 1, true)
  end)

  it("plans an attempt and swaps the key", function()
    local engine = assert(open())
    local request, step = ask(engine)
    assert.equal("try", step.kind)
    assert.same({ "one", "http", "one.test", 80, "/v1/chat/completions", 1 }, { step.provider, step.scheme, step.host, step.port, step.uri, step.attempt })
    local set = {}
    step:set_headers(function(name, value) set[name] = value end)
    assert.equal("Bearer sk-test-aaaaaaaaaaaaaaaa", set.authorization)
    local removed = table.concat(step.remove, " ")
    assert.matches("authorization", removed, 1, true)
    local body = request:body()
    assert.matches('"m-upstream"', body, 1, true)
    assert.matches("include_usage", body, 1, true)
    assert.equal(#body, step.body_bytes)
    request:free()
  end)

  it("takes its usage event out wherever the stream is cut", function()
    local engine = assert(open())
    local stream, expected = CONTENT .. FINISH .. USAGE .. DONE, CONTENT .. FINISH .. DONE
    for cut = 0, #stream do
      local request = ask(engine)
      request:answer(200, { ["content-type"] = "text/event-stream" })
      local out = request:feed(stream:sub(1, cut), false) .. request:feed(stream:sub(cut + 1), false) .. request:feed("", true)
      assert.equal(expected, out)
      local row = request:finish { status = 200, complete = true }
      assert.matches('"end":"complete"', row, 1, true)
      assert.matches('"input":7', row, 1, true)
      assert.matches('"output":2', row, 1, true)
      request:free()
    end
  end)

  it("ends a request once", function()
    local engine = assert(open())
    local request = ask(engine)
    assert.is_string(request:finish { status = 502 })
    local row, why, code = request:finish { status = 502 }
    assert.same({ nil, "the request has ended, or has no row", weir.NO_ROW }, { row, why, code })
    request:free()
    request:free()
  end)

  it("gives results larger than its buffer", function()
    local engine = assert(open())
    local text = ("x"):rep(3000000)
    local request = ask(engine, { body = '{"model":"m","messages":[{"role":"user","content":"' .. text .. '"}]}' })
    assert.matches(text, request:body(), 1, true)
    request:free()
  end)

  it("takes bytes that are no text", function()
    local engine = assert(open())
    for _, body in ipairs { "\0\255\254", "", '{"model":"\0"}' } do
      local request, step = ask(engine, { body = body, headers = { ["x-odd"] = "\255\0" } })
      assert.equal("refuse", step.kind)
      request:free()
    end
  end)

  it("survives a panic", function()
    local engine = assert(open())
    local request, _, code = ask(engine, { headers = { ["x-weir-panic"] = "1" } })
    assert.is_nil(request)
    assert.equal(-2, code)
    assert.is_truthy((ask(engine)))
    -- From compiled code, too, where a backtrace would be the end.
    local panicked = 0
    for round = 1, 900 do
      request, _, code = ask(engine, { headers = round % 3 == 0 and { ["x-weir-panic"] = "1" } or {} })
      if request then request:free() elseif code == -2 then panicked = panicked + 1 end
    end
    assert.equal(300, panicked)
  end)

  it("asks the node, and refuses while it is away", function()
    local engine = assert(open { node = true })
    local request, step = ask(engine)
    assert.equal("admit", step.kind)
    assert.matches("wk_client", step.body, 1, true)
    step = request:admitted(0)
    assert.same({ "refuse", 503 }, { step.kind, step.status })
    request:free()
  end)

  it("serves known callers from the files while the node is away, if told so", function()
    local engine = assert(open { node = true, when_node_is_away = "config_only" })
    local request = ask(engine)
    local step = request:admitted(200, '{"request_id":"01J","account":"acme","key_id":"k1","tier":null,"scopes":{},"has_budget":false,"draw":1,"keys":[{"provider":"one","key":"sk-node","own":false}]}')
    assert.equal("try", step.kind)
    request:free()
    request = ask(engine)
    step = request:admitted(0)
    assert.equal("try", step.kind)
    local row = request:finish { status = 502 }
    assert.matches('"account":"acme"', row, 1, true)
    assert.matches('"admitted":false', row, 1, true)
    request:free()
    request = ask(engine, { headers = { authorization = "Bearer wk_other" } })
    assert.equal("refuse", request:admitted(0).kind)
    request:free()
  end)

  it("has no row of a request the node did not admit", function()
    local engine = assert(open { node = true })
    local request = ask(engine)
    local step = request:admitted(401, '{"headers":{},"body":"no"}')
    assert.same({ "refuse", 401, "no" }, { step.kind, step.status, step.body })
    assert.same({ nil, weir.NO_ROW }, { (request:finish { status = 401 }), (select(3, request:finish { status = 401 })) })
    request:free()
  end)

  it("asks to extend a reservation until it is heard, and ends a stream whose reservation is used up", function()
    local engine = assert(open { node = true })
    local request = ask(engine)
    request:admitted(200, '{"request_id":"01J","account":"acme","key_id":"k1","tier":null,"scopes":{},"has_budget":true,"draw":1,"covered_tokens":20,"headers":{},"keys":[{"provider":"one","key":"sk-node","own":false}]}')
    request:answer(200, { ["content-type"] = "text/event-stream" })
    for _ = 1, 2 do
      local out, stop, extend = request:feed(CONTENT, false)
      assert.same({ CONTENT, false, true }, { out, stop, extend })
    end
    assert.matches('"output_tokens":2', request:extension(), 1, true)
    assert.is_false((select(3, request:feed(CONTENT, false))))
    request:extended(200, '{"covered_tokens":30}')
    local fed, out, stop, extend = 3
    repeat
      out, stop, extend = request:feed(CONTENT, false)
      fed = fed + 1
      if extend then
        request:extension()
        request:extended(404, "{}")
      end
    until stop
    assert.equal(31, fed)
    assert.matches("error", out, 1, true)
    assert.matches('"end":"cancelled"', request:finish { status = 200 }, 1, true)
    request:free()
    assert.is_nil((request:extended(200, "{}")))
  end)

  it("leaves no handle behind", function()
    local engine = assert(open())
    for _ = 1, 2000 do ask(engine) end
    collectgarbage()
    collectgarbage()
    assert.matches("weir_plugin_requests_open 0\n", engine:metrics(), 1, true)
  end)
end)
