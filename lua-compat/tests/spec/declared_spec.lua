--- What a proxy declares of itself: that it only looks on, what it cannot change between attempts, that no attempt can follow.
local weir = require "resty.weir"

local function write(text)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(text)
  file:close()
  return name
end

local KEY = write "sk-test-aaaaaaaaaaaaaaaa"

local function provider(name, base)
  return ('[provider.%s]\nkind = "openai-compatible"\nbase_url = "%s"\nkey = "file:%s"\n'):format(name, base, KEY)
end

local function model(name, ...)
  local targets = {}
  for at, target in ipairs { ... } do
    targets[at] = ('{ provider = "%s", model = "%s", price = "free", priority = %d }'):format(target:match "(.*)/(.*)", target:match "/(.*)", at)
  end
  return ("[model.%s]\ntargets = [%s]\n"):format(name, table.concat(targets, ", "))
end

local engine = assert(weir.open {
  routing = write("[retry]\nmax_attempts = 5\n" .. provider("one", "http://one.test/v1") .. provider("two", "http://two.test/v1")
    .. provider("secure", "https://secure.test/v1") .. provider("deep", "http://deep.test/deep/v1")
    .. model("all", "one/m", "two/other", "secure/m", "deep/m", "two/m")),
  prices = write '[price."two/m"]\ninput = "2000000"\noutput = "1000000"\n', library = assert(os.getenv "WEIR_LIBRARY"),
})

local function ask(more)
  local asked = { path = "/v1/chat/completions", headers = {}, body = '{"model":"all","messages":[]}' }
  for name, value in pairs(more or {}) do asked[name] = value end
  return engine:begin(asked)
end

local function hosts(fixed)
  local request, step = ask { fixed = fixed }
  assert.equal("one", step.provider)
  local list = assert(request:hosts())
  request:free()
  return list
end

describe("a proxy that makes its retries in a balancer", function()
  it("learns the hosts that may follow", function()
    assert.same({ "two.test", "secure.test", "deep.test", "two.test" }, hosts())
  end)

  it("is not given what it cannot carry out", function()
    assert.same({ "two.test", "deep.test", "two.test" }, hosts "scheme")
    assert.same({ "two.test", "secure.test", "two.test" }, hosts "uri")
    assert.same({ "secure.test", "deep.test", "two.test" }, hosts "body")
    assert.same({ "two.test" }, hosts "scheme uri body")
  end)

  it("is told what to answer when nothing can follow", function()
    local request = ask()
    local step = request:next { status = 503, from_upstream = true, last = true }
    assert.same({ "refuse", 502 }, { step.kind, step.status })
    assert.matches('"end":"failed"', request:finish { status = 502 }, 1, true)
    request:free()
    request = ask()
    assert.equal("pass", request:next({ status = 400, from_upstream = true, last = true }).kind)
    request:free()
    request = ask()
    assert.equal("try", request:next({ status = 503, from_upstream = true }).kind)
    request:free()
  end)
end)

local FINISH = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
local USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
local STREAM = FINISH .. USAGE .. "data: [DONE]\n\n"

describe("a proxy that only looks on", function()
  local function observe(more)
    local request, step = ask { observe = true, account = "acme", body = more and more.body or nil }
    assert.equal("pass", step.kind)
    local answer = request:answer(200, { ["content-type"] = "text/event-stream", ["set-cookie"] = "a=b" }, { provider = "two", model = "m" })
    assert.same({ strips = false, remove = {}, set = {} }, answer)
    assert.equal(STREAM, request:feed(STREAM, true))
    local row = request:finish { status = 200, complete = true }
    request:free()
    return row
  end

  it("has every byte passed and counted, and nothing charged", function()
    local row = observe()
    for _, part in ipairs { '"end":"complete"', '"input":7', '"output":2', '"provider":"two"', '"upstream_model":"m"', '"asked_model":"all"', '"account":"acme"', '"admitted":false', '"cost":"16', '"charge":"0' } do
      assert.matches(part, row, 1, true)
    end
  end)

  it("may know the model where the body does not name it", function()
    assert.matches('"model":"m"', observe { body = '{"messages":[]}' }, 1, true)
  end)

  it("sees an error and a client that leaves", function()
    local request = ask { observe = true }
    request:answer(503, {}, { provider = "two", model = "m" })
    assert.matches('"end":"failed"', request:finish { status = 503, complete = true }, 1, true)
    request:free()
    request = ask { observe = true }
    request:answer(200, { ["content-type"] = "text/event-stream" }, { provider = "two", model = "m" })
    request:feed('data: {"choices":[{"index":0,"delta":{"content":"hello there"}}]}\n\n', false)
    local row = request:finish { status = 200, client_gone = true }
    assert.matches('"end":"cancelled"', row, 1, true)
    assert.matches('"usage_source":"counted"', row, 1, true)
    request:free()
  end)

  it("asks no node", function()
    local with_node = assert(weir.open { routing = write(provider("one", "http://one.test/v1") .. model("all", "one/m")), prices = write "", node = true })
    local request, step = with_node:begin { path = "/v1/chat/completions", headers = {}, body = '{"model":"all","messages":[]}', observe = true }
    assert.equal("pass", step.kind)
    request:free()
  end)
end)

describe("a client", function()
  it("cannot speak for the proxy", function()
    local request = ask { headers = { [":account"] = "someone", [":observe"] = "true" } }
    assert.matches('"account":"proxy"', request:finish { status = 502 }, 1, true)
    request:free()
    -- nginx unescapes paths: %0a is a line feed.
    local step
    request, step = ask { path = "/v1/chat/completions\n:account: someone" }
    assert.same({ "refuse", 404 }, { step.kind, step.status })
    request:free()
  end)
end)
