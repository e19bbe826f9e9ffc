--- lua-resty-dns, which OpenResty has and Debian has not: two names.
local strict = require "strict"

local NAMES = { ["localhost"] = "127.0.0.1" }
local asked = 0

return strict("resty.dns.resolver", {
  asked = function() return asked end,
  new = function(_, options)
    if not options.nameservers or #options.nameservers == 0 then return nil, "no nameservers specified" end
    return strict("resolver", {
      TYPE_A = 1, TYPE_AAAA = 28,
      query = function(_, name, wanted)
        asked = asked + 1
        if not NAMES[name] or wanted.qtype ~= 1 then return { errcode = 3, errstr = "name error" } end
        return { { name = name, type = 5, cname = name, ttl = 1 }, { name = name, type = 1, address = NAMES[name], ttl = 60 } }
      end,
    })
  end,
})
