-- One policy, run by nginx's Lua module and by weir. The request's X-Case says which rule it meets; what both answer, send
-- upstream and log is compared. Lines between bars are the ones that are compared.
local cjson = require "cjson"
local safe = require "cjson.safe"

local function log(level, ...) ngx.log(level, "|", table.concat({ ... }, " "), "|") end

-- What a value is, as text, whatever its order in memory.
local function shown(value)
  if value == nil then return "nil" end
  if type(value) ~= "table" then return type(value) .. ":" .. tostring(value) end
  local parts = {}
  for key, inner in pairs(value) do parts[#parts + 1] = tostring(key) .. "=" .. shown(inner) end
  table.sort(parts)
  return "{" .. table.concat(parts, ",") .. "}"
end

local function list(...)
  local parts = {}
  for index = 1, select("#", ...) do parts[index] = shown((select(index, ...))) end
  return table.concat(parts, " ")
end

local case = {}

-- A rule that answers with what its expressions are.
local function says(name, values) case[name] = { access = function() ngx.say(list(values())) end } end

says("var", function()
  local v = ngx.var
  return v.http_x_case, v.http_x_none, v.arg_a, v.arg_none, v.args, v.query_string, v.is_args, v.uri, v.request_uri, v.request_method,
    v.host, v.scheme, v.server_protocol, v.remote_addr, v.content_type, v.content_length, v.http_user_agent,
    #v.request_id > 20, v.request_time:match("^%d+%.%d%d%d$") ~= nil
end)
says("credentials", function()
  local headers = ngx.req.get_headers()
  return ngx.var.http_authorization, ngx.var.http_x_api_key, headers.authorization, headers["X-Api-Key"], headers.cookie, ngx.var.http_cookie
end)
says("caller", function() return ngx.var.weir_account, #ngx.var.weir_key_id > 0, ngx.var.weir_tier end)
says("get_method", function() return ngx.req.get_method() end)
says("get_headers", function()
  local headers = ngx.req.get_headers()
  return headers.x_case, headers["X-Case"], headers["x-twice"], headers.none, ngx.req.get_headers(0)["x-twice"]
end)
says("get_uri_args", function() return ngx.req.get_uri_args(), ngx.req.get_uri_args(1) end)
says("get_body_data", function()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  return #body, cjson.decode(body).messages[1].content
end)
says("get_phase", function() return ngx.get_phase() end)
says("now", function()
  ngx.update_time()
  return type(ngx.now()), ngx.now() > 1.7e9, ngx.time() - math.floor(ngx.now()), ngx.time() % 1
end)
says("ctx", function()
  ngx.ctx.a = { b = { 1, 2 } }
  ngx.ctx.c = "d"
  return ngx.ctx.a.b[2], ngx.ctx.c, ngx.ctx.none
end)
says("constants", function()
  return ngx.OK, ngx.ERROR, ngx.DECLINED, ngx.AGAIN, ngx.DONE, ngx.ERR, ngx.WARN, ngx.INFO, ngx.HTTP_OK, ngx.HTTP_FORBIDDEN,
    ngx.HTTP_TOO_MANY_REQUESTS, ngx.HTTP_INTERNAL_SERVER_ERROR, type(ngx.null), ngx.null == cjson.null
end)
says("re_match", function()
  local m = ngx.re.match("gpt-4o-mini", [[^(\w+)-(?<version>\d+)(x)?]])
  local ctx = { pos = 3 }
  local at = ngx.re.match("a1b2c3", [[\d]], "", ctx)
  return m[0], m[1], m[2], m[3], m.version, ngx.re.match("abc", "z"), at[0], ctx.pos, ngx.re.match("ABC", "b", "ijo")[0],
    ngx.re.match("a\nb", "^b", "m")[0], ngx.re.match("ünï", "(.)", "u")[1]
end)
says("re_find", function()
  local from, to, why = ngx.re.find("hello 42", [[(\d)(\d)]], "jo")
  return from, to, why, (ngx.re.find("x", "y")), ngx.re.find("a12", [[(\d)(\d)]], "", nil, 2)
end)
says("re_gsub", function()
  local text, count, why = ngx.re.gsub("a-b-c", "([a-z])-", "<$1${1}$$>")
  return text, count, why, ngx.re.gsub("x1y2", [[\d]], function(m) return "(" .. m[0] .. ")" end, "jo"), (ngx.re.gsub("none", "z", "y"))
end)
says("base64", function()
  return ngx.encode_base64("any carnal pleas"), ngx.encode_base64("a", true), ngx.decode_base64("YW55IGNhcm5hbCBwbGVhcw=="),
    ngx.decode_base64("****"), ngx.decode_base64("YQ")
end)
says("hashes", function()
  return ngx.md5("weir"), ngx.encode_base64(ngx.md5_bin("weir")), ngx.encode_base64(ngx.sha1_bin("weir")),
    ngx.encode_base64(ngx.hmac_sha1("key", "weir")), ngx.md5(""), ngx.md5(42)
end)
says("uri", function()
  return ngx.escape_uri("a b/ü&=~"), ngx.unescape_uri("a+b%2Fc%zz%"), ngx.encode_args({ a = { "1", "x y" } }), ngx.encode_args({ b = true }),
    ngx.decode_args("a=1&b&a=2&c=x%20y")
end)
says("shared", function()
  local d = ngx.shared.d
  local ok = d:set("k", "v")
  local number, why = d:incr("n" .. ngx.var.arg_run, 2, 40)
  local again = d:incr("n" .. ngx.var.arg_run, 0.5)
  local none, not_found = d:incr("none", 1)
  d:set("gone", true)
  d:delete("gone")
  d:set("short", 1, 0.001)
  return ok, d:get("k"), number, why, again, none, not_found, d:get("gone"), d:get("none"), (d:incr("k", 1))
end)
says("cjson", function()
  return cjson.encode({ 1, "a/b\"\\\n\127", true, cjson.null, 1.5, 1e15, 12345678901234, -0.1, 1e-7 }), cjson.encode({}), cjson.encode({ a = { b = { 1 } } }),
    cjson.encode({ [1] = "a", [3] = "c" }), cjson.decode('{"a":[1,2.5,-3e2],"b":null,"c":"\\u00fc\\ud83d\\ude00","d":{},"e":[]}'),
    cjson.decode("null") == cjson.null, (pcall(cjson.decode, "{"))
end)
says("cjson_safe", function()
  local value, why = safe.decode("[1,")
  return value, type(why), safe.encode({ 1 }), safe.encode(print) == nil, safe.decode("[1]")
end)
says("lua", function()
  local caught, what = pcall(error, { code = 7 })
  return ("Hello"):upper(), ("%5.2f|%s|%q"):format(3.14159, "a", "b\n"), ("a,b,c"):find(",", 1, true), ("key = value"):match("^(%w+)%s*=%s*(%w+)$"),
    ("abc"):gsub("%w", "%0%0"), ("x"):rep(3), #"abc", ("abc"):byte(2), tostring(1e15), 7 % 3, math.max(1, 2), caught, what.code,
    select("#", unpack({ 1, 2, 3 })), bit.band(12, 10), os.time() > 0, type(os.date()), tonumber("0x10"), tostring(nil), rawequal(1, 1),
    ("THE (quick) fox"):find("%((%a+)%)"), ("f(a(b)c)d"):match("%b()"), ("THE (quick) fox"):gsub("%f[%a]%a+", string.lower)
end)

case.say = { access = function()
  ngx.header["X-P-Said"] = "yes"
  ngx.header.content_type = "application/x-policy"
  ngx.status = 418
  ngx.say("one", 2, nil, true, { "three", 4 })
  ngx.print("no end")
  return ngx.exit(ngx.status)
end }
case.say_after_exit = { access = function() ngx.say("first") ngx.exit(200) ngx.say("never") end }
for _, status in ipairs { 400, 401, 403, 404, 429, 500, 503 } do
  case["exit_" .. status] = { access = function() ngx.header["X-P-Why"] = "rule" log(ngx.WARN, "refusing", status) return ngx.exit(status) end }
end
case.exit_in_pcall = { access = function() pcall(ngx.exit, 403) end }
case.exit_ok = { access = function() return ngx.exit(ngx.OK) end }
case.raises = { access = function() local none = nil return none.field end }
case.raises_text = { access = function() error("with this text") end }

-- What goes upstream.
case.set_header = { access = function()
  ngx.req.set_header("X-P-One", "1")
  ngx.req.set_header("X-P-Many", { "a", "b" })
  ngx.req.set_header("X-Twice", "once")
  ngx.req.clear_header("X-Gone")
  ngx.req.set_header("X-P-Nil", "x")
  ngx.req.set_header("X-P-Nil", nil)
  log(ngx.NOTICE, ngx.var.http_x_p_one, shown(ngx.req.get_headers()["x-p-many"]), shown(ngx.var.http_x_gone))
end }
case.set_body = { access = function()
  ngx.req.read_body()
  local body = ngx.re.gsub(ngx.req.get_body_data(), "weir", "dam")
  ngx.req.set_body_data(body)
  log(ngx.NOTICE, #ngx.req.get_body_data())
end }

-- What comes back.
case.headers = {
  access = function() ngx.header["X-P-Early"] = "early" ngx.ctx.from = "access" end,
  header_filter = function()
    ngx.header["X-P-Late"] = ngx.ctx.from .. " " .. ngx.get_phase() .. " " .. ngx.status
    ngx.header["X-P-Many"] = { "a", "b" }
    ngx.header["X-P-Type"] = ngx.header.content_type
    ngx.header["X-P-Var"] = ngx.var.sent_http_x_from_provider
    ngx.header["X-From-Provider"] = nil
    ngx.header["X-P-None"] = shown(ngx.header["X-None"])
  end,
  log = function() log(ngx.NOTICE, ngx.get_phase(), ngx.ctx.from, ngx.status, ngx.var.status, shown(ngx.header["X-P-Early"])) end,
}
case.status = { header_filter = function() ngx.status = 202 end }
case.body = {
  access = function() ngx.ctx.bytes = 0 ngx.ctx.ends = 0 end,
  header_filter = function() ngx.header.content_length = nil end,
  body_filter = function()
    local chunk, is_last = ngx.arg[1], ngx.arg[2]
    ngx.ctx.bytes = ngx.ctx.bytes + #chunk
    if is_last then ngx.ctx.ends = ngx.ctx.ends + 1 end
    chunk = chunk:gsub("[a-z]", string.upper)
    ngx.arg[1] = is_last and chunk .. "\n# " .. ngx.ctx.bytes .. " bytes, " .. ngx.get_phase() or chunk
  end,
  log = function() log(ngx.NOTICE, ngx.ctx.bytes, ngx.ctx.ends) end,
}
case.body_nil = { header_filter = function() ngx.header.content_length = nil end, body_filter = function() ngx.arg[1] = ngx.arg[2] and "replaced" or nil end }
case.body_cut = {
  header_filter = function() ngx.header.content_length = nil end,
  body_filter = function() if not ngx.ctx.cut then ngx.ctx.cut = true ngx.arg[1] = "cut" ngx.arg[2] = true end end,
}
case.levels = { access = function()
  for _, level in ipairs { "EMERG", "ALERT", "CRIT", "ERR", "WARN", "NOTICE", "INFO" } do log(ngx[level], level) end
  ngx.log(ngx.WARN, "|", nil, true, 1, 1.5, "text", "|")
  print("|printed|")
end }

case.mark = { access = function() ngx.say("mark") end, log = function() log(ngx.WARN, "mark") end }

local function handler(phase)
  return function()
    local rule = case[ngx.var.http_x_case]
    local run = rule and rule[phase]
    if run then return run() end
  end
end

return { access = handler("access"), header_filter = handler("header_filter"), body_filter = handler("body_filter"), log = handler("log") }
