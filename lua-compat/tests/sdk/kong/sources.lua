--- Kong's own kit and schema language instead of the stand-ins, from a checked out tree (KONG_SRC). What they need and is not here
-- (Kong's C modules, its database, its DNS client) is an error where it is used.

local strict = require "strict"

local _M = {}

local function absent(module)
  return setmetatable({}, { __index = function(_, field)
    return function() error(module .. "." .. tostring(field) .. " is not here", 2) end
  end })
end

--- Puts the tree behind what is here.
function _M.use(tree)
  package.path = package.path .. ";" .. tree .. "/?.lua;" .. tree .. "/?/init.lua"
  table.insert(package.loaders, function(name) return function() return absent(name) end end)
  -- They want what is not here to be loaded at all, and nothing weir does wants them.
  for _, name in ipairs { "kong.tools.cjson", "kong.db.schema.json", "kong.tools.rand", "kong.runloop.balancer" } do package.loaded[name] = absent(name) end
end

--- The kit as kong.pdk makes it, with the stand-in's name lookup.
function _M.pdk(stand_in)
  local kit = { configuration = { enabled_headers = {} }, dns = stand_in.dns, ip = absent "kong.ip", table = absent "kong.table" }
  rawset(_G, "kong", kit)
  kit.ctx = require("kong.pdk.ctx").new(kit)
  kit.log = require("kong.pdk.log").new(kit, "core")
  for _, part in ipairs { "client", "request", "response", "service" } do kit[part] = require("kong.pdk." .. part).new(kit) end
  kit.service.request = strict("kong.service.request", require("kong.pdk.service.request").new(kit))
  for _, part in ipairs { "client", "request", "response", "service" } do strict("kong." .. part, kit[part]) end
  return kit
end

--- By name, what ngx.ctx.KONG_PHASE holds.
function _M.phases() return require("kong.pdk.private.phases").phases end

--- Checks a configuration with Kong's schema language; the schema itself is checked as one of a plugin.
function _M.check_schema(schema, config)
  local meta = require "kong.db.schema.metaschema"
  local ok, why = meta.MetaSubSchema:validate(schema)
  if not ok then error("the schema itself: " .. require("cjson").encode(why)) end
  local entity = require("kong.db.schema").new(schema)
  local given = entity:process_auto_fields({ config = config }, "insert")
  ok, why = entity:validate(given)
  if not ok then return nil, require("cjson").encode(why) end
  for name, value in pairs(given.config) do config[name] = value ~= ngx.null and value or nil end
  return true
end

return _M
