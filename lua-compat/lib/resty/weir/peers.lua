--- Providers reached at their addresses, without an upstream block for each: OpenResty, ngx_lua 0.10.27 and later.
--
-- There the third argument of set_current_peer names the host of a connection, and kept connections are told apart by it. Earlier
-- releases ignore it without a word, and would send one host's key over another's connection.

local balancer = require "ngx.balancer"

local _M = {}

local NEEDED = 10027
-- Connections kept, for how long, and for how many requests.
local IDLE_S, REQUESTS = 60, 1000
-- An address is asked for again after its time to live, within these bounds; one that cannot be had anew is used on.
local TTL_LEAST_S, TTL_MOST_S = 5, 300
-- Names that are known; at the bound all are forgotten and asked for again.
local NAMES_MAX = 1000

local known, count = {}, 0

--- nil, or why kept connections cannot be told apart here.
function _M.why_not()
  if ngx.config.ngx_lua_version >= NEEDED then return nil end
  return ("peers = \"dynamic\" needs ngx_lua 0.10.27 or later, this is 0.%d.%d: use an upstream block for each provider (nginx.conf)"):format(
    math.floor(ngx.config.ngx_lua_version / 1000) % 1000, ngx.config.ngx_lua_version % 1000)
end

local function ask(host, nameservers)
  local resolver, why = require("resty.dns.resolver"):new { nameservers = nameservers, retrans = 3, timeout = 1000 }
  if not resolver then return nil, why end
  for _, kind in ipairs { resolver.TYPE_A, resolver.TYPE_AAAA } do
    local answers
    answers, why = resolver:query(host, { qtype = kind })
    for _, answer in ipairs(answers or {}) do
      local address = answer.type == kind and answer.address
      if address then return kind == resolver.TYPE_AAAA and "[" .. address .. "]" or address, answer.ttl end
    end
    why = answers and answers.errstr or why
  end
  return nil, why or "no address"
end

--- The address of a host. In access: it may wait. nil and why, if none can be had.
function _M.address(host, nameservers)
  if host:find "^[%d.]+$" then return host end
  if host:find ":" then return host:find "^%[" and host or "[" .. host .. "]" end
  local now, held = ngx.now(), known[host]
  if held and held.until_s > now then return held.address end
  local address, ttl = ask(host, nameservers)
  if not address then
    if held then return held.address end
    return nil, ttl
  end
  if not held and count >= NAMES_MAX then known, count = {}, 0 end
  if not known[host] then count = count + 1 end
  known[host] = { address = address, until_s = now + math.min(math.max(ttl, TTL_LEAST_S), TTL_MOST_S) }
  return address
end

--- In the balancer: the connection to a peer { address, port, host }.
function _M.connect(peer)
  local ok, why = balancer.set_current_peer(peer.address, peer.port, peer.host)
  if not ok then return nil, why end
  return balancer.enable_keepalive(IDLE_S, REQUESTS)
end

return _M
