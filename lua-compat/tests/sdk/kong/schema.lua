--- The part of Kong's schema language that weir's schema uses. An attribute that is not known here is an error.

local FIELD = { type = true, required = true, default = true, one_of = true, match = true, len_min = true, between = true, description = true }

local function scalar(name, field, value)
  for attribute in pairs(field) do
    if not FIELD[attribute] then error("there is no attribute " .. attribute .. " of " .. name) end
  end
  if value == nil then
    if field.required then return nil, name .. ": required field missing" end
    return true
  end
  local kind = field.type == "integer" and "number" or field.type
  if type(value) ~= kind then return nil, name .. ": expected a " .. field.type end
  if field.type == "integer" and value ~= math.floor(value) then return nil, name .. ": expected an integer" end
  if field.match and not value:match(field.match) then return nil, name .. ": invalid value: " .. value end
  if field.len_min and #value < field.len_min then return nil, name .. ": length must be at least " .. field.len_min end
  if field.between and (value < field.between[1] or value > field.between[2]) then
    return nil, name .. ": value should be between " .. field.between[1] .. " and " .. field.between[2]
  end
  if field.one_of then
    for _, allowed in ipairs(field.one_of) do
      if value == allowed then return true end
    end
    return nil, name .. ": expected one of: " .. table.concat(field.one_of, ", ")
  end
  return true
end

local function conditional(check, config)
  for attribute in pairs(check) do
    if attribute ~= "conditional" then error("there is no entity check " .. attribute) end
  end
  local rule = check.conditional
  if config[rule.if_field] == rule.if_match.eq and rule.then_match.required and config[rule.then_field] == nil then
    return nil, rule.then_field .. ": required field missing"
  end
  return true
end

--- Fills defaults in and checks a configuration of the plugin. Returns true, or nil and why.
return function(schema, config)
  local record
  for _, entry in ipairs(schema.fields) do
    if entry.config then record = entry.config end
  end
  assert(record.type == "record")
  local known = {}
  for _, entry in ipairs(record.fields) do
    local name, field = next(entry)
    known[name] = true
    if config[name] == nil then config[name] = field.default end
    local ok, why = scalar(name, field, config[name])
    if not ok then return nil, why end
  end
  for name in pairs(config) do
    if not known[name] then return nil, name .. ": unknown field" end
  end
  for _, check in ipairs(record.entity_checks or {}) do
    local ok, why = conditional(check, config)
    if not ok then return nil, why end
  end
  return true
end
