local typedefs = require "kong.db.schema.typedefs"

local function path(description, required)
  return { type = "string", required = required, match = "^/.", description = description }
end

return {
  name = "weir",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
      type = "record",
      fields = {
        { mode = {
          type = "string", required = true, default = "route", one_of = { "route", "observe" },
          description = "route: weir decides where a request goes and with which key. observe: another plugin does; weir counts.",
        } },
        { routing = path("Path of routing.toml on each node.", true) },
        { prices = path("Path of prices.toml on each node.", true) },
        { credit = { type = "string", match = "^%d+%.?%d*$", description = "What a credit is worth in dollars." } },
        { node = { type = "string", match = "^unix:/.", description = "The plugin socket of a weir node; without it the files decide." } },
        { when_node_is_away = { type = "string", required = true, default = "refuse", one_of = { "refuse", "config_only" } } },
        { remember_s = {
          type = "integer", required = true, default = 3600, between = { 1, 2592000 },
          description = "How long callers the node admitted are served while it is away (config_only).",
        } },
        { journal = path("Where rows wait: a file for each worker, with its number behind this path.") },
        { tier = { type = "string", len_min = 1, description = "The tier of this plugin's callers; with a node, the node's word holds." } },
        { path = path("Which API the route speaks, where its own path is another: /v1/chat/completions and the like.") },
        { provider = { type = "string", len_min = 1, description = "observe: who answers, as prices.toml names it." } },
      },
      entity_checks = {
        { conditional = {
          if_field = "when_node_is_away", if_match = { eq = "config_only" },
          then_field = "node", then_match = { required = true },
        } },
        { conditional = {
          if_field = "when_node_is_away", if_match = { eq = "config_only" },
          then_field = "journal", then_match = { required = true },
        } },
      },
    } },
  },
}
