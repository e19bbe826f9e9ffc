std = "ngx_lua"
max_line_length = false
exclude_files = { "tests/e2e" }
files["tests/spec"] = { std = "+busted" }
-- Kong's handlers are methods whether they need themselves or not.
for _, folder in ipairs { "kong", "tests/sdk/kong" } do files[folder] = { globals = { "kong" }, ignore = { "212/self" } } end
