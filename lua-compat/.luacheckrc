std = "ngx_lua"
max_line_length = false
exclude_files = { "tests/e2e" }
files["tests/spec"] = { std = "+busted" }
