--- A table that has these fields and no others: whoever asks for another gets an error that names it.
return function(name, fields)
  return setmetatable(fields, {
    __index = function(_, key) error("there is no " .. name .. "." .. tostring(key), 2) end,
    __newindex = function(_, key) error(name .. "." .. tostring(key) .. " is not to be set", 2) end,
  })
end
