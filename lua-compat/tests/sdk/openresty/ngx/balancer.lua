--- ngx.balancer as ngx_lua 0.10.27 has it, on one that is older: three arguments, and the connection is not kept.
local strict = require "strict"

local elsewhere = package.path:gsub("[^;]*openresty[^;]*;", "")
local old = assert(loadfile(assert(package.searchpath("ngx.balancer", elsewhere))))()

return strict("ngx.balancer", {
  get_last_failure = old.get_last_failure,
  set_current_peer = function(address, port, host)
    if ngx.get_phase() ~= "balancer" then error("set_current_peer may not be called here", 2) end
    if type(address) ~= "string" or type(port) ~= "number" then error("address and port expected", 2) end
    if type(host) ~= "string" then error("a host expected: without it connections are told apart by address alone", 2) end
    ngx.ctx.peer = address .. " " .. port .. " " .. host
    return old.set_current_peer(address, port)
  end,
  enable_keepalive = function(idle, requests)
    if not ngx.ctx.peer then error("no current peer", 2) end
    if type(idle) ~= "number" or idle < 0 or type(requests) ~= "number" or requests < 0 then error("numbers expected", 2) end
    ngx.log(ngx.NOTICE, "kept for ", ngx.ctx.peer)
    return true
  end,
})
