//! The C interface. `include/weir.h` and the binding's declarations are made from this file and `packed.rs` (`tests/header.rs`). Every export
//! catches panics (-2) and takes bytes with their length; nothing here keeps a pointer it was given.

use crate::engine::{Engine, now_ms};
use crate::packed::{Packed, Place};
use crate::request::{Failed, Fed, Passage, Request};
use crate::settings::Settings;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::Once;

/// Version of this interface. A binding refuses another.
pub const ABI_VERSION: u32 = 3;
/// Done.
pub const OK: i32 = 0;
/// The chunk goes out as it came; nothing was written.
pub const UNCHANGED: i32 = 1;
/// The buffer is too small; the length is what is needed. weir_request_result gives the result again.
pub const TOO_SMALL: i32 = 2;
/// The request has ended before, or has no such result.
pub const ENDED: i32 = 3;
/// As 0, and nothing may follow.
pub const STOP: i32 = 4;
/// Added to the code of weir_request_feed: ask the node to extend the reservation.
pub const EXTEND: i32 = 8;
/// A null pointer, or settings that cannot be used.
pub const BAD_ARGUMENT: i32 = -1;
/// The library panicked. The handle is to be freed and not used again.
pub const PANICKED: i32 = -2;
/// Of a failed attempt: the upstream answered.
pub const FROM_UPSTREAM: u32 = 1;
/// Of a failed attempt: the proxy can make no other.
pub const LAST: u32 = 2;

/// A request behind a C handle, with its last result.
pub struct Handle {
    request: Option<Box<Request>>,
    result: Vec<u8>,
}

/// Room for a packed step as a rule.
const STEP_BYTES_USUAL: usize = 512;

fn guarded(work: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED)
}

/// Panics are told in a line, without a backtrace: to walk the stack goes through frames of compiled Lua, at which libgcc's unwinder
/// aborts the process (seen with LuaJIT 2.1 and `RUST_BACKTRACE=1`).
fn tell_panics_briefly() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("weir: {panic}"))));
}

/// The bytes of a pointer and a length; nothing for a null pointer.
///
/// # Safety
/// `data` is null or points to `length` bytes that live and stay as they are for `'a`.
unsafe fn bytes<'a>(data: *const u8, length: usize) -> &'a [u8] {
    if data.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise, for a pointer that is not null.
    unsafe { slice::from_raw_parts(data, length) }
}

/// Copies `result` out if it fits, and says how long it is.
///
/// # Safety
/// `buffer` is null or points to `capacity` bytes to write to; `length` is null or points to a `size_t`.
unsafe fn give(result: &[u8], buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    if length.is_null() {
        return BAD_ARGUMENT;
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { *length = result.len() };
    if result.len() > capacity || buffer.is_null() {
        return if result.is_empty() { OK } else { TOO_SMALL };
    }
    // SAFETY: there is room for the result, and what a caller lends is not memory of ours.
    unsafe { std::ptr::copy_nonoverlapping(result.as_ptr(), buffer, result.len()) };
    OK
}

/// The interface's version.
#[unsafe(no_mangle)]
pub extern "C" fn weir_abi_version() -> u32 {
    ABI_VERSION
}

/// Opens an engine. Settings: JSON {"routing","prices","credit"?,"node"?,"when_node_is_away"?,"remember_s"?}. On -1 the buffer
/// holds the reason.
///
/// # Safety
/// The pointers are null or valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_engine_open(
    settings: *const u8,
    settings_length: usize,
    engine: *mut *mut Engine,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        if engine.is_null() || length.is_null() {
            return BAD_ARGUMENT;
        }
        tell_panics_briefly();
        // SAFETY: the function's own conditions.
        let text = unsafe { bytes(settings, settings_length) };
        match Settings::parse(text).and_then(Engine::open) {
            Ok(opened) => {
                // SAFETY: not null; the handle is the caller's until weir_engine_close.
                unsafe {
                    *length = 0;
                    *engine = Box::into_raw(Box::new(opened));
                }
                OK
            }
            Err(why) => {
                let shown = why.as_bytes();
                // SAFETY: the function's own conditions. A reason that does not fit is cut.
                unsafe { give(&shown[..shown.len().min(capacity)], buffer, capacity, length) };
                BAD_ARGUMENT
            }
        }
    })
}

/// Closes an engine. Requests begun with it may go on.
///
/// # Safety
/// `engine` is null or came from weir_engine_open and was not closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_engine_close(engine: *mut Engine) {
    guarded(|| {
        if !engine.is_null() {
            // SAFETY: it came from Box::into_raw and is given back once.
            drop(unsafe { Box::from_raw(engine) });
        }
        OK
    });
}

/// Configurations loaded so far, the first included; 0 for a null pointer.
///
/// # Safety
/// `engine` is null or an open engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_engine_generation(engine: *const Engine) -> u64 {
    // SAFETY: the function's own condition.
    let engine = unsafe { engine.as_ref() };
    catch_unwind(AssertUnwindSafe(|| {
        engine.map_or(0, |engine| {
            engine.arm(now_ms());
            engine.generation()
        })
    }))
    .unwrap_or(0)
}

/// What is wrong with the files as they are now, a line each; empty: nothing.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_engine_problems(engine: *const Engine, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    guarded(|| {
        // SAFETY: null or an open engine.
        let Some(engine) = (unsafe { engine.as_ref() }) else { return BAD_ARGUMENT };
        // SAFETY: the function's own conditions.
        unsafe { give(engine.problems().as_bytes(), buffer, capacity, length) }
    })
}

/// Prometheus text.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_engine_metrics(engine: *const Engine, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    guarded(|| {
        // SAFETY: null or an open engine.
        let Some(engine) = (unsafe { engine.as_ref() }) else { return BAD_ARGUMENT };
        // SAFETY: the function's own conditions.
        unsafe { give(engine.metrics().as_bytes(), buffer, capacity, length) }
    })
}

/// Begins a request. Head: the path, then a line "name: value" for each header. Names with a colon before them are the proxy's own
/// word, never to be taken from a client: ":method" (another than POST is refused); ":account"; ":tier"; ":observe: true" (others route
/// it: count, change nothing; the step is pass); ":fixed: scheme uri body" (what the proxy cannot change after the first attempt;
/// attempts that need it are not made).
/// A handle is made with any code but -1 and -2.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_begin(
    engine: *const Engine,
    head: *const u8,
    head_length: usize,
    body: *const u8,
    body_length: usize,
    request: *mut *mut Handle,
    step: *mut Packed,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: null or an open engine.
        let Some(engine) = (unsafe { engine.as_ref() }) else { return BAD_ARGUMENT };
        if request.is_null() || step.is_null() {
            return BAD_ARGUMENT;
        }
        // SAFETY: the function's own conditions.
        let (head, body) = unsafe { (bytes(head, head_length), bytes(body, body_length)) };
        let mut texts = String::with_capacity(STEP_BYTES_USUAL);
        let (begun, packed) = match Request::begin(engine, head, body) {
            Ok((begun, step)) => {
                let packed = begun.write_step(&step, &mut texts);
                (Some(begun), packed)
            }
            Err(refused) => (None, refused.pack(&mut texts)),
        };
        let handle = Box::new(Handle { request: begun, result: texts.into_bytes() });
        // SAFETY: the function's own conditions.
        let code = unsafe { give(&handle.result, buffer, capacity, length) };
        // SAFETY: not null; the handle is the caller's until weir_request_free.
        unsafe {
            *step = packed;
            *request = Box::into_raw(handle);
        }
        code
    })
}

/// Runs `work` on a handle and gives its result.
///
/// # Safety
/// `request` is null or a handle not freed; the others as for [`give`].
unsafe fn with(
    request: *mut Handle,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
    work: impl FnOnce(&mut Request, &mut Vec<u8>) -> i32,
) -> i32 {
    guarded(|| {
        // SAFETY: the function's own condition; a handle is used by one thread.
        let Some(handle) = (unsafe { request.as_mut() }) else { return BAD_ARGUMENT };
        let Some(inner) = &mut handle.request else { return ENDED };
        handle.result.clear();
        let code = work(inner, &mut handle.result);
        if code & !EXTEND != OK && code != STOP {
            return code;
        }
        // SAFETY: the function's own conditions.
        match unsafe { give(&handle.result, buffer, capacity, length) } {
            OK => code,
            other => other,
        }
    })
}

/// Runs `work` on a handle, and gives the step it packs.
///
/// # Safety
/// `step` is null or points to one; the others as for [`with`].
unsafe fn with_step(
    request: *mut Handle,
    step: *mut Packed,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
    work: impl FnOnce(&mut Request, &mut String) -> Packed,
) -> i32 {
    if step.is_null() {
        return BAD_ARGUMENT;
    }
    let pack = |request: &mut Request, out: &mut Vec<u8>| {
        let mut texts = String::with_capacity(STEP_BYTES_USUAL);
        let packed = work(request, &mut texts);
        // SAFETY: not null, and the function's own condition.
        unsafe { *step = packed };
        *out = texts.into_bytes();
        OK
    };
    // SAFETY: the function's own conditions.
    unsafe { with(request, buffer, capacity, length, pack) }
}

/// The last result, or the last step's texts, again: for a buffer that was too small.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_result(request: *const Handle, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    guarded(|| {
        // SAFETY: null or a handle not freed.
        let Some(handle) = (unsafe { request.as_ref() }) else { return BAD_ARGUMENT };
        // SAFETY: the function's own conditions.
        unsafe { give(&handle.result, buffer, capacity, length) }
    })
}

/// The node's answer to an admission; status 0: none in time.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_admitted(
    request: *mut Handle,
    status: u32,
    answer: *const u8,
    answer_length: usize,
    step: *mut Packed,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        let answer = bytes(answer, answer_length);
        with_step(request, step, buffer, capacity, length, |request, out| {
            let step = request.admitted(u16::try_from(status).unwrap_or(0), answer);
            request.write_step(&step, out)
        })
    }
}

/// The attempt under way failed. what: 1 the upstream answered, 2 the proxy can make no other attempt, or both added; retry_after_ms
/// below 0: not said.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_next(
    request: *mut Handle,
    status: u32,
    what: u32,
    retry_after_ms: i64,
    error: *const u8,
    error_length: usize,
    step: *mut Packed,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        let error = bytes(error, error_length);
        with_step(request, step, buffer, capacity, length, |request, out| {
            let failed = Failed {
                status: u16::try_from(status).unwrap_or(0),
                from_upstream: what & FROM_UPSTREAM != 0,
                is_last: what & LAST != 0,
                retry_after_ms: u64::try_from(retry_after_ms).ok(),
                body: error,
            };
            let step = request.next(&failed);
            request.write_step(&step, out)
        })
    }
}

/// Where the attempt under way goes. 3: there is none. weir_request_result gives its texts from then on.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_target(
    request: *mut Handle,
    place: *mut Place,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    if place.is_null() {
        return BAD_ARGUMENT;
    }
    let pack = |request: &mut Request, out: &mut Vec<u8>| {
        let mut texts = String::new();
        let Some(found) = request.write_target(&mut texts) else { return ENDED };
        // SAFETY: not null, and the function's own condition.
        unsafe { *place = found };
        *out = texts.into_bytes();
        OK
    };
    // SAFETY: the function's own conditions.
    unsafe { with(request, buffer, capacity, length, pack) }
}

/// The host of each attempt that may still follow, a line each: for a proxy that must know before how many they are, and where.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_hosts(request: *mut Handle, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        with(request, buffer, capacity, length, |request, out| {
            request.write_hosts(out);
            OK
        })
    }
}

/// The body of the attempt under way.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_body(request: *mut Handle, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        with(request, buffer, capacity, length, |request, out| {
            request.write_body(out);
            OK
        })
    }
}

/// An answer begins. Head: a line "name: value" for each of its headers; of one that is observed, ":provider" and ":model" too.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_answer(
    request: *mut Handle,
    status: u32,
    head: *const u8,
    head_length: usize,
    step: *mut Packed,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        let head = bytes(head, head_length);
        with_step(request, step, buffer, capacity, length, |request, out| request.answer(u16::try_from(status).unwrap_or(0), head, out))
    }
}

/// A chunk of the answer. 1: send the chunk. 0: send the result. 4: send the result and end. With 8 added: ask the node to extend
/// the reservation; said again with every chunk until weir_request_extension is called.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_feed(
    request: *mut Handle,
    chunk: *const u8,
    chunk_length: usize,
    last: u32,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        let chunk = bytes(chunk, chunk_length);
        with(request, buffer, capacity, length, |request, out| {
            let Passage { fed, extend } = request.feed(chunk, last != 0, out);
            let code = match fed {
                Fed::Unchanged => UNCHANGED,
                Fed::Changed => OK,
                Fed::Stop => STOP,
            };
            code + if extend { EXTEND } else { 0 }
        })
    }
}

/// The body for POST /plugin/v1/extend. 3: there is nothing to extend.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_extension(request: *mut Handle, buffer: *mut u8, capacity: usize, length: *mut usize) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        with(request, buffer, capacity, length, |request, out| match request.extension() {
            Some(asked) => {
                out.extend_from_slice(asked.as_bytes());
                OK
            }
            None => ENDED,
        })
    }
}

/// The node's answer to an extension; status 0: none in time.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_extended(request: *mut Handle, status: u32, answer: *const u8, answer_length: usize) -> i32 {
    guarded(|| {
        // SAFETY: null or a handle not freed, used by one thread; the bytes as the function's conditions say.
        let (handle, answer) = unsafe { (request.as_mut(), bytes(answer, answer_length)) };
        match handle {
            None => BAD_ARGUMENT,
            Some(Handle { request: None, .. }) => ENDED,
            Some(Handle { request: Some(inner), .. }) => {
                inner.extended(u16::try_from(status).unwrap_or(0), answer);
                OK
            }
        }
    })
}

/// Ends the request. The result is its row, JSON. 3: it has ended before, or the node did not admit it: it has no row.
///
/// # Safety
/// The pointers are null or valid for their lengths; handles are open and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_end(
    request: *mut Handle,
    status: u32,
    client_gone: u32,
    complete: u32,
    buffer: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: the function's own conditions.
    unsafe {
        with(request, buffer, capacity, length, |request, out| {
            match request.end(u16::try_from(status).unwrap_or(0), client_gone != 0, complete != 0) {
                Some(row) => {
                    out.extend_from_slice(row.as_bytes());
                    OK
                }
                None => ENDED,
            }
        })
    }
}

/// Frees a request.
///
/// # Safety
/// `request` is null or came from weir_request_begin and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weir_request_free(request: *mut Handle) {
    guarded(|| {
        if !request.is_null() {
            // SAFETY: it came from Box::into_raw and is given back once.
            drop(unsafe { Box::from_raw(request) });
        }
        OK
    });
}
