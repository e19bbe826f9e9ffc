--- What weir uses of apisix.plugin. `attributes` is config.yaml's plugin_attr.
local strict = require "strict"
local attributes = {}

return strict("apisix.plugin", {
  attributes = attributes,
  plugin_attr = function(name) return attributes[name] end,
})
