//! Boxes that are filled in place. `Box::pin(make())` and `Box::new(make())` make the value on the stack and copy it over, all
//! of it: of a future of 4 KB that has hardly begun, that is 4 KB of nothing, into memory that is in no cache. Here the box is
//! there first, so that the compiler can build the value where it stays.

use std::pin::Pin;

/// A box of what `make` makes.
#[inline(always)]
pub fn boxed<T>(make: impl FnOnce() -> T) -> Box<T> {
    Box::write(Box::new_uninit(), make())
}

/// The same, pinned: for a future.
#[inline(always)]
pub fn pinned<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(boxed(make))
}
