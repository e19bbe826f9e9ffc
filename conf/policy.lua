-- An example of a policy. It runs in weir, and in nginx's Lua module as well, where nginx.conf calls
-- access_by_lua_block { require("policy").access() } and so on. routing.toml says when it is used.
local cjson = require "cjson.safe"

local policy = {}

-- Before a request is planned: refuse it, answer it, or change its headers and body.
function policy.access()
  -- Who calls: ngx.var.weir_account, weir_key_id, weir_tier. Credentials read as nil.
  local calls = ngx.shared.calls:incr(ngx.var.weir_account, 1, 0, 60)
  if calls and calls > 600 then return ngx.exit(ngx.HTTP_TOO_MANY_REQUESTS) end

  local document = cjson.decode(ngx.req.get_body_data() or "")
  local first = document and document.messages and document.messages[1]
  if first and type(first.content) == "string" and ngx.re.find(first.content, [[\bproject falcon\b]], "ijo") then
    ngx.log(ngx.WARN, "a secret project was mentioned by ", ngx.var.weir_account)
    return ngx.exit(ngx.HTTP_FORBIDDEN)
  end

  -- Headers steer as if the client had sent them.
  if ngx.var.http_x_team == "batch" then ngx.req.set_header("X-Power-Level", "eco") end
  ngx.ctx.team = ngx.var.http_x_team
end

-- Before an answer's header goes out, a refusal's too.
function policy.header_filter()
  ngx.header["X-Team"] = ngx.ctx.team
end

-- body_filter runs on every piece of an answer (ngx.arg[1], and ngx.arg[2] with the last); leave it out where nothing needs it.

-- After the account is settled.
function policy.log()
  ngx.log(ngx.INFO, ngx.var.request_uri, " ", ngx.status, " in ", ngx.var.request_time, " s")
end

return policy
