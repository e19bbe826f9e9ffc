-- A library of another version is refused before any of its functions but one is called.

local function build(version)
  local source = os.tmpname()
  local file = assert(io.open(source, "w"))
  file:write("unsigned weir_abi_version(void) { return ", version, "; }\n")
  file:close()
  assert(os.execute(("cc -shared -fPIC -x c -o %s.so %s"):format(source, source)) == 0)
  os.remove(source)
  return source .. ".so"
end

describe("the library's version", function()
  it("must be the binding's", function()
    -- A binding that has not loaded a library yet.
    local kept = package.loaded["resty.weir"]
    package.loaded["resty.weir"] = nil
    local weir = require "resty.weir"
    package.loaded["resty.weir"] = kept
    for _, version in ipairs { weir.ABI + 1, 0 } do
      local library = build(version)
      local engine, why = weir.open { routing = "r", prices = "p", library = library }
      assert.is_nil(engine)
      assert.equal(("libweir.so has ABI version %d, this binding needs %d"):format(version, weir.ABI), why)
      os.remove(library)
    end
    local engine, why = weir.open { routing = "/nowhere/r", prices = "/nowhere/p", library = os.getenv "WEIR_LIBRARY" }
    assert.is_nil(engine)
    assert.matches("/nowhere/r", why, 1, true)
  end)
end)
