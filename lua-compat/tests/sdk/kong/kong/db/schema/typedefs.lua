--- The one typedef the schema uses.
return require "strict"("typedefs", {
  protocols_http = { type = "set", required = true, default = { "grpc", "grpcs", "http", "https" }, elements = { type = "string" } },
})
