--- weir's engine in LuaJIT. Open an engine in init_worker, never before the fork.
--
--   local weir = require "resty.weir"
--   local engine = assert(weir.open{ routing = "/etc/weir/routing.toml", prices = "/etc/weir/prices.toml" })
--   local request, step = engine:begin{ path = "/v1/chat/completions", headers = headers, body = body }
--   step.kind                  "admit" | "try" | "refuse" | "pass"; step.remove, step.constant and answer.remove are shared between requests: read only
--   step:set_headers(set)      sets the headers of an attempt, its key's too, by set(name, value)
--   request:admitted(status, body) -> step     request:next{ status =, from_upstream =, last =, error =, retry_after_ms = } -> step
--   request:hosts()            the host of each attempt that may still follow
--   request:body()             the body of the attempt
--   request:answer(status, headers, seen) -> { strips, remove, set }; seen: provider, model of an answer that is only observed
--   request:feed(chunk, last)  -> bytes to send, whether to end, whether to ask the node to extend the reservation:
--   request:extension()        -> the body of POST /plugin/v1/extend; nil: there is nothing to extend
--   request:extended(status, body)
--   request:finish{ status =, client_gone =, complete = } -> row (JSON); nil, why, NO_ROW: it has ended before, or the node did not admit it
--   request:free()             in the log phase; the collector is only a net
--
-- Every call returns nil, message, code on a failure; code -2 is a panic in the library.

local ffi = require "ffi"
local band = require("bit").band

ffi.cdef [[
static const int WEIR_ABI_VERSION = 3;
static const int WEIR_OK = 0;
static const int WEIR_UNCHANGED = 1;
static const int WEIR_TOO_SMALL = 2;
static const int WEIR_ENDED = 3;
static const int WEIR_STOP = 4;
static const int WEIR_EXTEND = 8;
static const int WEIR_BAD_ARGUMENT = -1;
static const int WEIR_PANICKED = -2;
static const int WEIR_FROM_UPSTREAM = 1;
static const int WEIR_LAST = 2;
static const int WEIR_TEXTS_MAX = 6;
static const int WEIR_PASS = 0;
static const int WEIR_ADMIT = 1;
static const int WEIR_TRY = 2;
static const int WEIR_REFUSE = 3;
static const int WEIR_HEAD = 4;
static const int WEIR_OWN_KEY = 1;
static const int WEIR_FALLBACK = 2;
static const int WEIR_EDITED = 4;
static const int WEIR_STRIPS = 8;
static const int WEIR_TARGET_TEXTS = 5;
typedef struct weir_engine weir_engine;
typedef struct weir_request weir_request;
typedef struct {
  uint32_t kind;
  uint32_t flags;
  uint32_t status;
  uint32_t attempt;
  size_t body_length;
  uint64_t target;
  uint32_t lengths[WEIR_TEXTS_MAX];
} weir_step;
typedef struct {
  uint32_t port;
  uint32_t connect_ms;
  uint32_t first_event_ms;
  uint32_t between_events_ms;
  uint32_t lengths[WEIR_TARGET_TEXTS];
} weir_target;
uint32_t weir_abi_version(void);
int32_t weir_engine_open(const uint8_t *settings, size_t settings_length, weir_engine **engine, uint8_t *buffer, size_t capacity, size_t *length);
void weir_engine_close(weir_engine *engine);
uint64_t weir_engine_generation(const weir_engine *engine);
int32_t weir_engine_problems(const weir_engine *engine, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_engine_metrics(const weir_engine *engine, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_begin(const weir_engine *engine, const uint8_t *head, size_t head_length, const uint8_t *body, size_t body_length, weir_request **request, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_result(const weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_admitted(weir_request *request, uint32_t status, const uint8_t *answer, size_t answer_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_next(weir_request *request, uint32_t status, uint32_t what, int64_t retry_after_ms, const uint8_t *error, size_t error_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_target(weir_request *request, weir_target *place, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_hosts(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_body(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_answer(weir_request *request, uint32_t status, const uint8_t *head, size_t head_length, weir_step *step, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_feed(weir_request *request, const uint8_t *chunk, size_t chunk_length, uint32_t last, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_extension(weir_request *request, uint8_t *buffer, size_t capacity, size_t *length);
int32_t weir_request_extended(weir_request *request, uint32_t status, const uint8_t *answer, size_t answer_length);
int32_t weir_request_end(weir_request *request, uint32_t status, uint32_t client_gone, uint32_t complete, uint8_t *buffer, size_t capacity, size_t *length);
void weir_request_free(weir_request *request);
]]

local C = ffi.C
local ABI, BAD_ARGUMENT, PANICKED, NO_ROW = C.WEIR_ABI_VERSION, C.WEIR_BAD_ARGUMENT, C.WEIR_PANICKED, C.WEIR_ENDED
local UNCHANGED, TOO_SMALL, STOP, EXTEND = C.WEIR_UNCHANGED, C.WEIR_TOO_SMALL, C.WEIR_STOP, C.WEIR_EXTEND
local FROM_UPSTREAM, LAST = C.WEIR_FROM_UPSTREAM, C.WEIR_LAST
local ADMIT, TRY, REFUSE = C.WEIR_ADMIT, C.WEIR_TRY, C.WEIR_REFUSE
-- The number of a target made for one request.
local UNKEPT = 0
local OWN_KEY, FALLBACK, EDITED, STRIPS = C.WEIR_OWN_KEY, C.WEIR_FALLBACK, C.WEIR_EDITED, C.WEIR_STRIPS

--- NO_ROW: the code of a request that ends without a row.
local _M = { ABI = ABI, NO_ROW = NO_ROW }

-- Results are rarely longer; what is gets a larger buffer, which is kept up to KEEP bytes.
local KEEP = 1048576
local capacity = 16384
local buffer = ffi.new("uint8_t[?]", capacity)
local length = ffi.new("size_t[1]")
local step = ffi.new("weir_step")
local place = ffi.new("weir_target")
local engine_out = ffi.new("weir_engine *[1]")
local request_out = ffi.new("weir_request *[1]")

local lib
-- One for all handles: a closure for each would be made by the interpreter. They hold the library, which must outlive every handle.
local free_request, close_engine

local function load_library(path)
  if lib then return lib end
  local tried = {}
  local function try(name)
    local ok, loaded = pcall(ffi.load, name)
    if ok then return loaded end
    tried[#tried + 1] = tostring(loaded)
  end
  local loaded
  if path then
    loaded = try(path)
  else
    for template in package.cpath:gmatch("[^;]+") do
      local folder = template:match("^(.*/)%?%.so$")
      if folder then
        for _, name in ipairs { "libweir.so", "libweir_ffi.so" } do
          local file = io.open(folder .. name, "rb")
          if file then
            file:close()
            loaded = loaded or try(folder .. name)
          end
        end
      end
    end
    loaded = loaded or try("weir")
  end
  if not loaded then return nil, "libweir.so cannot be loaded: " .. table.concat(tried, "; ") end
  local version = loaded.weir_abi_version()
  if version ~= ABI then return nil, "libweir.so has ABI version " .. version .. ", this binding needs " .. ABI end
  lib = loaded
  free_request = function(handle) loaded.weir_request_free(handle) end
  close_engine = function(handle) loaded.weir_engine_close(handle) end
  return lib
end

local MESSAGES = { [NO_ROW] = "the request has ended, or has no row", [BAD_ARGUMENT] = "bad argument", [PANICKED] = "the library panicked" }

local function failed(code)
  return nil, MESSAGES[code] or ("code " .. code), code
end

local function grow(to)
  capacity = to
  buffer = ffi.new("uint8_t[?]", to)
end

-- A result too large for the buffer. Held here while it is read, for a pointer into it does not keep it from the collector.
local large

--- Where the result of a call on a request is: in a larger buffer if need be.
local function result_at(handle, code)
  if code == TOO_SMALL then
    local needed = tonumber(length[0])
    if needed <= KEEP then grow(needed) end
    large = needed > KEEP and ffi.new("uint8_t[?]", needed) or buffer
    code = lib.weir_request_result(handle, large, needed, length)
    if code ~= 0 then return failed(code) end
    return large
  end
  if code ~= 0 and code ~= STOP then return failed(code) end
  return buffer
end

local function result(handle, code)
  local at, why, failure = result_at(handle, code)
  if not at then return nil, why, failure end
  local text = ffi.string(at, length[0])
  large = nil
  return text
end

-- Patterns are not compiled, looking for plain text is.
local find, sub, byte, concat, text_at = string.find, string.sub, string.byte, table.concat, ffi.string
local clear = require "table.clear"
local COLON = 58
local NO_HEADERS = {}

--- The line that begins at `at`, and where the next one does.
local function line_at(text, at)
  local stop = find(text, "\n", at, true)
  return sub(text, at, stop - 1), stop + 1
end

local function lines_of(text)
  local list, count, at = {}, 0, 1
  while at <= #text do
    count = count + 1
    list[count], at = line_at(text, at)
  end
  return list
end

local function headers_of(text)
  local list, count, at = {}, 0, 1
  while at <= #text do
    local name, value
    name, at = line_at(text, at)
    value, at = line_at(text, at)
    count = count + 1
    list[count] = { name, value }
  end
  return list
end

-- What a step says of its target is always the same, and one client's requests hardly differ in the headers that stay here. What is
-- the same is taken apart once and shared: nobody may change these tables. Nothing kept has a key in it.
local KEPT_MAX, KEPT_BYTES_MAX = 1000, 1024

--- Keeps in `cache` what `key` stands for.
local function keep(cache, key, parsed)
  if cache.count >= KEPT_MAX then cache.by_key, cache.count = {}, 0 end
  cache.by_key[key], cache.count = parsed, cache.count + 1
  return parsed
end

--- `cache`: what takes a text apart, and the texts that it has.
local function shared(cache, text)
  local parsed = cache.by_key[text]
  if parsed then return parsed end
  parsed = cache.parse(text)
  if #text > KEPT_BYTES_MAX then return parsed end
  return keep(cache, text, parsed)
end

local targets = { by_key = {}, count = 0 }
local names = { parse = lines_of, by_key = {}, count = 0 }
local constants = { parse = headers_of, by_key = {}, count = 0 }

local Step = {}
Step.__index = Step

--- Sets the headers of an attempt, by set(name, value).
function Step:set_headers(set)
  set("x-request-id", self.request_id)
  for _, header in ipairs(self.constant) do set(header[1], header[2]) end
  if self.key then set(self.key_name, self.key) end
end

local Request = {}
Request.__index = Request

local function target_of(handle)
  local at, why, failure = result_at(handle, lib.weir_request_target(handle, place, buffer, capacity, length))
  if not at then return nil, why, failure end
  local offset, texts = 0, {}
  for index = 0, C.WEIR_TARGET_TEXTS - 1 do
    texts[index + 1] = text_at(at + offset, place.lengths[index])
    offset = offset + place.lengths[index]
  end
  local target = {
    provider = texts[1], model = texts[2], scheme = texts[3], authority = texts[4], host = texts[5], port = place.port,
    connect_ms = place.connect_ms, first_event_ms = place.first_event_ms, between_events_ms = place.between_events_ms,
  }
  -- What a step does not have itself it has from here.
  return { __index = setmetatable(target, Step) }
end

local function try_of(handle, at)
  local lengths = step.lengths
  local request_id = text_at(at, lengths[0])
  at = at + lengths[0]
  local uri = text_at(at, lengths[1])
  at = at + lengths[1]
  local remove = shared(names, text_at(at, lengths[2]))
  at = at + lengths[2]
  local constant = shared(constants, text_at(at, lengths[3]))
  at = at + lengths[3]
  local key_name, key
  if lengths[4] > 0 then
    key_name = text_at(at, lengths[4])
    key = text_at(at + lengths[4], lengths[5])
  end
  local flags, attempt = step.flags, step.attempt
  local body_bytes = band(flags, EDITED) ~= 0 and tonumber(step.body_length) or nil
  local number = tonumber(step.target)
  -- From here on the buffer has something else.
  local target = targets.by_key[number]
  if not target then
    local why, failure
    target, why, failure = target_of(handle)
    if not target then return nil, why, failure end
    if number ~= UNKEPT then keep(targets, number, target) end
  end
  return setmetatable({
    kind = "try", request_id = request_id, uri = uri, attempt = attempt, own_key = band(flags, OWN_KEY) ~= 0,
    was_fallback = band(flags, FALLBACK) ~= 0, body_bytes = body_bytes, remove = remove, constant = constant, key_name = key_name, key = key,
  }, target)
end

local function stepped(self, code)
  local at, why, failure = result_at(self.handle, code)
  if not at then return nil, why, failure end
  local kind, lengths = step.kind, step.lengths
  if kind == TRY then return try_of(self.handle, at) end
  if kind == ADMIT then return { kind = "admit", body = text_at(at, lengths[0]) } end
  if kind == REFUSE then
    return { kind = "refuse", status = step.status, headers = headers_of(text_at(at, lengths[0])), body = text_at(at + lengths[0], lengths[1]) }
  end
  return { kind = "pass" }
end

function Request:admitted(status, answer)
  answer = answer or ""
  return stepped(self, lib.weir_request_admitted(self.handle, status, answer, #answer, step, buffer, capacity, length))
end

function Request:next(outcome)
  local err = outcome.error or ""
  return stepped(self, lib.weir_request_next(self.handle, outcome.status or 0, (outcome.from_upstream and FROM_UPSTREAM or 0) + (outcome.last and LAST or 0), outcome.retry_after_ms or -1, err, #err, step, buffer, capacity, length))
end

function Request:hosts()
  local text, why, failure = result(self.handle, lib.weir_request_hosts(self.handle, buffer, capacity, length))
  if not text then return nil, why, failure end
  local hosts = {}
  for host in text:gmatch("[^\n]+") do hosts[#hosts + 1] = host end
  return hosts
end

function Request:body()
  return result(self.handle, lib.weir_request_body(self.handle, buffer, capacity, length))
end

--- A text on one line.
local function clean(value)
  value = tostring(value)
  if find(value, "\n", 1, true) or find(value, "\r", 1, true) then value = value:gsub("[\r\n]", " ") end
  return value
end

-- The pieces of one head at a time; a table for each would be work for the collector.
local pieces = {}

local function put(at, name, value)
  pieces[at], pieces[at + 1], pieces[at + 2], pieces[at + 3] = "\n", name, ": ", clean(value)
  return at + 4
end

--- The proxy's own word, where it has one. No header, and no line feed in a path, can pass for it.
local function put_own(at, name, value)
  if value == nil then return at end
  return put(at, name, value)
end

--- The head whose pieces stand before `at`, and the headers.
local function head_of(at, headers)
  for name, value in pairs(headers) do
    if byte(name) ~= COLON then
      if type(value) == "table" then
        for index = 1, #value do at = put(at, name, value[index]) end
      else
        at = put(at, name, value)
      end
    end
  end
  local head = concat(pieces, "", 1, at - 1)
  -- Nothing of a client's stays reachable from here.
  clear(pieces)
  return head
end

function Request:answer(status, headers, seen)
  pieces[1] = ""
  local own = 2
  if seen then own = put_own(put_own(own, ":provider", seen.provider), ":model", seen.model) end
  local head = head_of(own, headers)
  local at, why, failure = result_at(self.handle, lib.weir_request_answer(self.handle, status, head, #head, step, buffer, capacity, length))
  if not at then return nil, why, failure end
  local lengths = step.lengths
  return {
    strips = band(step.flags, STRIPS) ~= 0, remove = shared(names, text_at(at, lengths[0])),
    set = headers_of(text_at(at + lengths[0], lengths[1])),
  }
end

function Request:feed(chunk, last)
  local code = lib.weir_request_feed(self.handle, chunk, #chunk, last and 1 or 0, buffer, capacity, length)
  local extend = code >= EXTEND
  if extend then code = code - EXTEND end
  if code == UNCHANGED then return chunk, false, extend end
  local text, why, failure = result(self.handle, code)
  if not text then return nil, why, failure end
  return text, code == STOP, extend
end

function Request:extension()
  return result(self.handle, lib.weir_request_extension(self.handle, buffer, capacity, length))
end

function Request:extended(status, answer)
  answer = answer or ""
  local code = lib.weir_request_extended(self.handle, status, answer, #answer)
  if code ~= 0 then return failed(code) end
  return true
end

function Request:finish(ending)
  return result(self.handle, lib.weir_request_end(self.handle, ending.status or 0, ending.client_gone and 1 or 0, ending.complete and 1 or 0, buffer, capacity, length))
end

function Request:free()
  local handle = self.handle
  if handle then
    self.handle = nil
    ffi.gc(handle, nil)
    lib.weir_request_free(handle)
  end
end

local Engine = {}
Engine.__index = Engine

--- `asked`: path, headers (a table), body, and the proxy's own word: method, account, tier, observe, fixed (see weir.h).
function Engine:begin(asked)
  pieces[1] = asked.path and clean(asked.path) or ""
  local own = put_own(put_own(put_own(2, ":method", asked.method), ":account", asked.account), ":tier", asked.tier)
  own = put_own(put_own(own, ":observe", asked.observe), ":fixed", asked.fixed)
  local head, body = head_of(own, asked.headers or NO_HEADERS), asked.body or ""
  local code = lib.weir_request_begin(self.handle, head, #head, body, #body, request_out, step, buffer, capacity, length)
  if code < 0 then return failed(code) end
  local handle = ffi.gc(request_out[0], free_request)
  local request = setmetatable({ handle = handle }, Request)
  local first, why, failure = stepped(request, code)
  if not first then
    request:free()
    return nil, why, failure
  end
  return request, first
end

function Engine:generation()
  return tonumber(lib.weir_engine_generation(self.handle))
end

local function whole(call, handle)
  local code = call(handle, buffer, capacity, length)
  if code == TOO_SMALL then
    grow(tonumber(length[0]))
    code = call(handle, buffer, capacity, length)
  end
  if code ~= 0 then return failed(code) end
  return ffi.string(buffer, length[0])
end

function Engine:problems() return whole(lib.weir_engine_problems, self.handle) end

function Engine:metrics() return whole(lib.weir_engine_metrics, self.handle) end

function Engine:close()
  local handle = self.handle
  if handle then
    self.handle = nil
    ffi.gc(handle, nil)
    lib.weir_engine_close(handle)
  end
end

local function quoted(text)
  return '"' .. tostring(text):gsub('[%c"\\]', function(char) return ("\\u%04x"):format(char:byte()) end) .. '"'
end

--- Opens an engine. `settings`: routing, prices, and if wanted credit, node (true: a weir node admits and settles),
-- when_node_is_away ("refuse" or "config_only"), remember_s, library (a path).
function _M.open(settings)
  local loaded, why = load_library(settings.library)
  if not loaded then return nil, why end
  local fields = {}
  for name, value in pairs(settings) do
    if name ~= "library" then
      fields[#fields + 1] = quoted(name) .. ":" .. (type(value) == "string" and quoted(value) or tostring(value))
    end
  end
  local text = "{" .. table.concat(fields, ",") .. "}"
  local code = lib.weir_engine_open(text, #text, engine_out, buffer, capacity, length)
  if code == BAD_ARGUMENT then return nil, ffi.string(buffer, length[0]), code end
  if code ~= 0 then return failed(code) end
  local handle = ffi.gc(engine_out[0], close_engine)
  return setmetatable({ handle = handle }, Engine)
end

return _M
