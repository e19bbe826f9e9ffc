--- APISIX's own balancer, requests, responses and upstreams instead of the stand-ins, from a checked out tree (APISIX_SRC). What they need
-- and is not here (its C modules, etcd, discovery) is an error where it is used.

local cjson = require "cjson.safe"
local strict = require "strict"

local _M = {}

local function absent(module)
  return setmetatable({}, { __index = function(_, field)
    return function() error(module .. "." .. tostring(field) .. " is not here", 2) end
  end })
end

local function quiet() end

--- Puts the tree behind what is here. Returns its balancer.
function _M.use(tree)
  package.path = package.path .. ";" .. tree .. "/?.lua"
  table.insert(package.loaders, function(name)
    -- APISIX looks whether its nginx is its own, and does without.
    return not name:find "^resty%.apisix%." and function() return absent(name) end or nil
  end)
  local stand_in = require "apisix.core"
  local core = {
    log = { error = stand_in.log.error, warn = stand_in.log.warn, info = quiet, debug = quiet },
    json = { decode = cjson.decode, encode = cjson.encode, delay_encode = quiet },
    schema = stand_in.schema, resolver = stand_in.resolver, lrucache = { new = function() return absent "an lrucache" end },
    config = absent "core.config", config_util = absent "core.config_util", utils = absent "core.utils",
  }
  local loaded = package.loaded
  for _, name in ipairs { "discovery.init", "ssl", "resource", "healthcheck_manager", "utils.upstream", "balancer.priority" } do
    loaded["apisix." .. name] = absent(name)
  end
  -- Spans are traced where somebody looks at them.
  loaded["apisix.tracer"] = { finish_all = quiet, status = {} }
  loaded["apisix.core"], loaded["apisix.core.log"], loaded["apisix.core.json"] = core, core.log, core.json
  for _, part in ipairs { "string", "table", "request", "response" } do core[part] = require("apisix.core." .. part) end
  strict("core.request", core.request)
  loaded["apisix.upstream"] = assert(loadfile(tree .. "/apisix/upstream.lua"))()
  return require "apisix.balancer"
end

return _M
