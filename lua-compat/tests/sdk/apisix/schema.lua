--- The part of JSON Schema that weir's schemas use, defaults filled in as APISIX does. A keyword that is not known here is an error.

local KEYWORDS = {
  type = true, properties = true, required = true, additionalProperties = true, enum = true, default = true, pattern = true,
  minLength = true, minimum = true, maximum = true, ["$comment"] = true,
}
local TYPES = { object = "table", string = "string", integer = "number", boolean = "boolean" }

local function check(schema, value, name)
  for keyword in pairs(schema) do
    if not KEYWORDS[keyword] then error("there is no keyword " .. tostring(keyword)) end
  end
  if type(value) ~= TYPES[schema.type] or schema.type == "integer" and value ~= math.floor(value) then
    return false, name .. ": wrong type, expected " .. schema.type
  end
  if schema.enum then
    local found = false
    for _, allowed in ipairs(schema.enum) do found = found or value == allowed end
    if not found then return false, name .. ": matches none of the enum values" end
  end
  if schema.pattern and not ngx.re.find(value, schema.pattern, "jo") then return false, name .. ": failed to match pattern" end
  if schema.minLength and #value < schema.minLength then return false, name .. ": string too short" end
  if schema.minimum and value < schema.minimum then return false, name .. ": expected to be at least " .. schema.minimum end
  if schema.maximum and value > schema.maximum then return false, name .. ": expected to be at most " .. schema.maximum end
  if schema.type ~= "object" then return true end
  for _, needed in ipairs(schema.required or {}) do
    if value[needed] == nil then return false, "property \"" .. needed .. "\" is required" end
  end
  for key, property in pairs(schema.properties) do
    if value[key] == nil then value[key] = property.default end
    if value[key] ~= nil then
      local ok, why = check(property, value[key], "property \"" .. key .. "\"")
      if not ok then return false, why end
    end
  end
  for key in pairs(value) do
    if schema.additionalProperties == false and not schema.properties[key] then return false, "additional properties forbidden, found " .. key end
  end
  return true
end

return function(schema, value) return check(schema, value, "value") end
