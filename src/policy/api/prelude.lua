-- Puts together what a policy sees, from the functions that weir gives. Runs once in every machine.
local native, null = ...
local error, setmetatable, type, tostring, select = error, setmetatable, type, tostring, select
local rawget, lower, gsub = rawget, string.lower, string.gsub

-- A table whose other names are errors that say so.
local function strict(table, path)
  return setmetatable(table, {
    __index = function(_, name) error(path .. "." .. tostring(name) .. " is not offered to policies", 2) end,
    __newindex = function(_, name) error(path .. "." .. tostring(name) .. " cannot be set", 2) end,
    __metatable = false,
  })
end

-- ngx -----------------------------------------------------------------------------------------------------------------

local ngx = native.ngx
ngx.null = null

local ctx
local function the_ctx()
  if not ctx then ctx = native.ctx() end
  return ctx
end

-- Names are found however they are spelt, as in ngx_lua: X_Any, x-any.
local spelt = { __index = function(table, name)
  if type(name) ~= "string" then return nil end
  return rawget(table, (gsub(lower(name), "_", "-")))
end }
local get_headers = native.req.get_headers
native.req.get_headers = function(max, raw)
  local headers, why = get_headers(max)
  if not raw then setmetatable(headers, spelt) end
  if why then return headers, why end
  return headers
end
ngx.req = strict(native.req, "ngx.req")
-- An error stands in the place that ngx_lua has it in, and is no value otherwise.
local re_match, re_find, re_gsub = native.re.match, native.re.find, native.re.gsub
ngx.re = strict({
  match = function(...)
    local found, why = re_match(...)
    if why then return nil, why end
    return found
  end,
  find = function(...)
    local from, to, why = re_find(...)
    if why then return nil, nil, why end
    return from, to
  end,
  gsub = function(...)
    local text, count, why = re_gsub(...)
    if why then return nil, nil, why end
    return text, count
  end,
}, "ngx.re")
ngx.var = setmetatable({}, {
  __index = function(_, name) return native.variable(tostring(name)) end,
  __newindex = function(_, name) error("ngx.var." .. tostring(name) .. " cannot be set", 2) end,
  __metatable = false,
})
ngx.header = setmetatable({}, {
  __index = function(_, name) return native.header(tostring(name)) end,
  __newindex = function(_, name, value) native.set_header(tostring(name), value) end,
  __metatable = false,
})
ngx.arg = setmetatable({}, {
  __index = function(_, index) return native.arg(index) end,
  __newindex = function(_, index, value) native.set_arg(index, value) end,
  __metatable = false,
})

local dictionaries = {}
ngx.shared = setmetatable({}, {
  __index = function(_, name)
    if type(name) ~= "string" then return nil end
    local dictionary = dictionaries[name]
    if not dictionary then
      dictionary = strict({
        get = function(_, key) return native.shared_get(name, key) end,
        set = function(_, key, value, lifetime) return native.shared_set(name, key, value, lifetime) end,
        delete = function(_, key) return native.shared_set(name, key, nil) end,
        incr = function(_, key, by, from, lifetime) return native.shared_incr(name, key, by, from, lifetime) end,
      }, "ngx.shared." .. name)
      dictionaries[name] = dictionary
    end
    return dictionary
  end,
  __newindex = function() error("ngx.shared cannot be set", 2) end,
  __metatable = false,
})

setmetatable(ngx, {
  __index = function(_, name)
    if name == "ctx" then return the_ctx() end
    if name == "status" then return native.status() end
    error("ngx." .. tostring(name) .. " is not offered to policies", 2)
  end,
  __newindex = function(_, name, value)
    if name == "ctx" then
      if type(value) ~= "table" then error("ngx.ctx is a table", 2) end
      ctx = value
    elseif name == "status" then
      native.set_status(value)
    else
      error("ngx." .. tostring(name) .. " cannot be set", 2)
    end
  end,
  __metatable = false,
})

-- Lua's own -------------------------------------------------------------------------------------------------------------

-- A used-up budget and an ngx.exit are not for a policy to catch.
local pcall = pcall
local function caught(ok, ...)
  if not ok then native.rethrow() end
  return ok, ...
end
local function safe_pcall(...) return caught(pcall(...)) end
-- Lua calls a message handler where the error is, before it unwinds: when the budget's hook raises it, no hook interrupts the
-- handler. So it is called once the error is caught, as a function like any other.
local function handled(handler, ok, ...)
  if ok then return ok, ... end
  local handles, result = safe_pcall(handler, ...)
  if handles then return false, result end
  return false, "error in error handling"
end
local function safe_xpcall(act, handler, ...) return handled(handler, safe_pcall(act, ...)) end

-- What backtracks inside one instruction, where nothing could stop it, is done step by step instead.
string.find, string.match, string.gsub = native.patterns.find, native.patterns.match, native.patterns.gsub
local step = native.patterns.step
string.gmatch = function(subject, pattern)
  local at = 0
  local function took(next_at, ...)
    if not next_at then return nil end
    at = next_at
    return ...
  end
  return function() return took(step(subject, pattern, at)) end
end
string.gfind = nil
string.dump = nil
-- So is a long sort: its comparisons are Lua's.
local sort = table.sort
local function less(one, other) return one < other end
table.sort = function(values, comparison) return sort(values, comparison or less) end

local modules = {
  cjson = strict({ encode = native.encode, decode = native.decode, null = null }, "cjson"),
  ["cjson.safe"] = strict({
    encode = function(value)
      local ok, text = safe_pcall(native.encode, value)
      if ok then return text end
      return nil, tostring(text)
    end,
    decode = function(text)
      local ok, value = safe_pcall(native.decode, text)
      if ok then return value end
      return nil, tostring(value)
    end,
  }, "cjson.safe"),
}

local offered = {
  _VERSION = _VERSION, assert = assert, bit = bit, error = error, getmetatable = getmetatable, ipairs = ipairs, math = math,
  next = next, ngx = ngx, os = strict({ clock = os.clock, date = os.date, difftime = os.difftime, time = os.time }, "os"),
  pairs = pairs, pcall = safe_pcall, rawequal = rawequal, rawget = rawget, rawlen = rawlen, rawset = rawset, select = select,
  setmetatable = setmetatable, string = string, table = table, tonumber = tonumber, tostring = tostring, type = type,
  unpack = unpack, xpcall = safe_xpcall,
  print = function(...) ngx.log(ngx.NOTICE, ...) end,
  require = function(name)
    return modules[name] or error("the module '" .. tostring(name) .. "' is not offered to policies", 2)
  end,
}
local withheld = {
  "collectgarbage", "coroutine", "debug", "dofile", "ffi", "getfenv", "io", "jit", "load", "loadfile", "loadstring", "module",
  "newproxy", "package", "setfenv",
}
local globals = _G
for name in pairs(globals) do
  if offered[name] == nil then globals[name] = nil end
end
for name, value in pairs(offered) do globals[name] = value end
globals._G = globals
local names = {}
for _, name in ipairs(withheld) do names[name] = true end
setmetatable(globals, {
  __index = function(_, name)
    if names[name] then error(tostring(name) .. " is not offered to policies", 2) end
  end,
  __metatable = false,
})

return function()
  local used = ctx
  ctx = nil
  return used
end
