//! The library stays mapped once it is loaded: its watcher thread may be asleep in it while a Lua VM closes.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
