//! A virtual machine per worker thread and version of the policy, its budget of time and memory, and the calls into it.

use super::api;
use super::exchange::{Failed, Handlers, Phase, State};
use super::names;
use crate::config::problem::Problem;
use crate::engine::catalog::LuaPolicy;
use crate::engine::refusal::scrub;
use crate::telemetry::log_lines::{self, Severity};
use mlua::{Function, HookTriggers, Lua, LuaOptions, StdLib, Table, Value, VmState};
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// One machine's memory at most, in bytes; beyond it an allocation is an error in the policy. LuaJIT takes mlua's counting
/// allocator in the builds that this crate vendors, which a test proves. A body that a policy reads is copied into it.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;
/// One handler's instructions at most.
const INSTRUCTIONS_MAX: u64 = 5_000_000;
/// How many instructions pass between two looks at the budget: few, for one that joins long texts takes a millisecond.
const HOOK_INSTRUCTIONS: u32 = 100;
/// After this much time by the wall the thread's own time is looked at, which runs only while the thread does.
const WALL_BUDGET: Duration = Duration::from_millis(30);
/// The thread's own time that a handler has from then on.
const PROCESSOR_BUDGET: Duration = Duration::from_millis(10);
/// Calls from a replacement's function into the next: some kilobytes of the thread's stack (2 MiB) each. Lua's own C calls have this bound.
const NESTED_MAX: u32 = 200;
/// Characters of an error that go to the log.
const ERROR_CHARS_MAX: usize = 300;
/// Bytes of a policy file at most.
const FILE_BYTES_MAX: usize = 1 << 20;

/// What of Lua's own is offered; `jit` only until it is switched off.
const LIBRARIES: [StdLib; 6] = [StdLib::TABLE, StdLib::STRING, StdLib::MATH, StdLib::BIT, StdLib::OS, StdLib::JIT];

/// The state of the request whose handler runs.
#[derive(Default)]
pub(super) struct Slot(RefCell<Option<Box<State>>>);

impl Slot {
    /// Acts on the running request's state; an error outside of a request (the file's own run).
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> mlua::Result<T>) -> mlua::Result<T> {
        match self.0.borrow_mut().as_deref_mut() {
            Some(state) => act(state),
            None => Err(mlua::Error::runtime("there is no request yet: this is for handlers")),
        }
    }
}

/// What a handler has used.
#[derive(Default)]
pub(super) struct Budget {
    instructions: Cell<u64>,
    started: Cell<Option<Instant>>,
    mark: Cell<Option<Duration>>,
    over: Cell<bool>,
    /// Calls back into Lua that are under way.
    depth: Cell<u32>,
}

impl Budget {
    /// A new handler: nothing is used.
    pub(super) fn start(&self) {
        self.instructions.set(0);
        self.started.set(Some(Instant::now()));
        self.mark.set(None);
        self.over.set(false);
        self.depth.set(0);
    }

    /// Takes `instructions` off, or what is worth as much.
    pub(super) fn spend(&self, instructions: u64) -> mlua::Result<()> {
        self.instructions.set(self.instructions.get().saturating_add(instructions));
        if self.instructions.get() > INSTRUCTIONS_MAX || self.is_late() {
            self.over.set(true);
        }
        self.check()
    }

    /// Calls back into Lua from a call that Lua made. Each takes room on the thread's own stack, which nobody else looks at.
    pub(super) fn nested<T>(&self, call: impl FnOnce() -> mlua::Result<T>) -> mlua::Result<T> {
        if self.depth.get() >= NESTED_MAX {
            return Err(mlua::Error::runtime("the policy's functions call each other too deep through replacements"));
        }
        self.depth.set(self.depth.get() + 1);
        let result = call();
        self.depth.set(self.depth.get() - 1);
        result
    }

    /// An error once the budget is used up: also where a policy catches errors.
    pub(super) fn check(&self) -> mlua::Result<()> {
        if self.over.get() { Err(mlua::Error::runtime("the policy ran longer than it may")) } else { Ok(()) }
    }

    fn is_late(&self) -> bool {
        if self.started.get().is_none_or(|started| started.elapsed() < WALL_BUDGET) {
            return false;
        }
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        match self.mark.get() {
            None => {
                self.mark.set(Some(now));
                false
            }
            Some(mark) => now.saturating_sub(mark) > PROCESSOR_BUDGET,
        }
    }
}

/// A machine with a policy in it.
struct Vm {
    lua: Lua,
    handlers: [Option<Function>; 4],
    /// Takes the `ngx.ctx` that the handler used, if it did.
    take_ctx: Function,
    slot: Rc<Slot>,
    budget: Rc<Budget>,
}

thread_local! {
    /// This thread's machines: the version in use, and those that requests under way began with.
    static MACHINES: RefCell<Vec<(Weak<LuaPolicy>, Rc<Vm>)>> = const { RefCell::new(Vec::new()) };
}

/// Checks a policy's text and runs it once in a machine of its own. All names that are not offered are reported. Blocking.
pub fn check(policy: &LuaPolicy) -> Result<(), Vec<Problem>> {
    let problem = |line: usize, key: &str, what: String| Problem { file: policy.file.to_string(), line, key: key.to_string(), what };
    if policy.text.len() > FILE_BYTES_MAX {
        return Err(vec![problem(1, "", format!("is larger than {FILE_BYTES_MAX} bytes"))]);
    }
    let unknown: Vec<Problem> = names::unknown(&policy.text)
        .into_iter()
        .map(|unknown| problem(unknown.line, &unknown.name, "is not offered to policies".into()))
        .collect();
    if !unknown.is_empty() {
        return Err(unknown);
    }
    Vm::new(policy).map(drop).map_err(|error| {
        let what = message(&error);
        // As Lua tells where: `name:line: what`.
        let found = what.strip_prefix(name(policy)).and_then(|rest| rest.strip_prefix(':')).and_then(|rest| rest.split_once(": "));
        let (line, what) = found.and_then(|(line, what)| Some((line.parse().ok()?, what))).unwrap_or((1, &what));
        vec![problem(line, "", what.to_string())]
    })
}

/// What Lua calls the file: its name alone, for Lua cuts a long one.
fn name(policy: &LuaPolicy) -> &str {
    policy.file.rsplit('/').next().unwrap_or_default()
}

/// Which handlers a policy has. All, when its machine cannot be made: then the first call says why.
pub(super) fn handlers(policy: &Arc<LuaPolicy>) -> Handlers {
    machine(policy).map_or([true; 4], |vm| std::array::from_fn(|index| vm.handlers[index].is_some()))
}

/// Runs the handler of `state`'s phase.
pub(super) fn call(policy: &Arc<LuaPolicy>, state: Box<State>) -> (Box<State>, Result<(), Failed>) {
    match machine(policy) {
        Ok(vm) => vm.call(policy, state),
        Err(error) => {
            report(policy, &state, &message(&error));
            (state, Err(Failed::Raised))
        }
    }
}

fn machine(policy: &Arc<LuaPolicy>) -> mlua::Result<Rc<Vm>> {
    MACHINES.with_borrow_mut(|machines| {
        let wanted = Arc::as_ptr(policy);
        if let Some((_, vm)) = machines.iter().find(|(of, _)| std::ptr::eq(of.as_ptr(), wanted)) {
            return Ok(vm.clone());
        }
        machines.retain(|(of, _)| of.strong_count() > 0);
        let vm = Rc::new(Vm::new(policy)?);
        machines.push((Arc::downgrade(policy), vm.clone()));
        Ok(vm)
    })
}

impl Vm {
    fn new(policy: &LuaPolicy) -> mlua::Result<Vm> {
        let libraries = LIBRARIES.into_iter().fold(StdLib::NONE, |all, one| all | one);
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        // Compiled code is not looked into by hooks: nothing is compiled.
        lua.load("jit.off() jit.flush()").exec()?;
        lua.set_memory_limit(MEMORY_BYTES_MAX)?;
        let slot = Rc::<Slot>::default();
        let budget = Rc::<Budget>::default();
        let take_ctx = api::install(&lua, &slot, &budget)?;
        let counting = budget.clone();
        let every = HookTriggers::new().every_nth_instruction(HOOK_INSTRUCTIONS);
        lua.set_hook(every, move |_, _| counting.spend(HOOK_INSTRUCTIONS.into()).map(|()| VmState::Continue))?;
        budget.start();
        let handlers =
            match lua.load(&*policy.text).set_name(format!("@{}", name(policy))).set_mode(mlua::chunk::ChunkMode::Text).eval::<Value>()? {
                Value::Table(table) => returned(&table)?,
                _ => return Err(mlua::Error::runtime("a policy returns a table of its handlers")),
            };
        Ok(Vm { lua, handlers, take_ctx, slot, budget })
    }

    fn call(&self, policy: &LuaPolicy, mut state: Box<State>) -> (Box<State>, Result<(), Failed>) {
        let Some(handler) = &self.handlers[state.phase as usize] else { return (state, Ok(())) };
        state.exit = None;
        self.slot.0.replace(Some(state));
        self.budget.start();
        let result = handler.call::<()>(());
        let is_over = self.budget.over.get();
        self.budget.start();
        let ctx = self.take_ctx.call::<Option<Table>>(());
        // The slot was filled above, and nothing else empties it.
        let Some(mut state) = self.slot.0.take() else { unreachable!("a handler's state is in its slot until the handler ends") };
        let result = if is_over {
            report(policy, &state, "it ran longer than it may");
            Err(Failed::TooLong)
        } else if state.exit.is_some() {
            Ok(())
        } else {
            result.map_err(|error| self.failed(policy, &state, &error))
        };
        let result = result.and_then(|()| match ctx {
            Ok(None) => Ok(()),
            Ok(Some(table)) => super::data::Data::take_table(&table).map(|ctx| state.ctx = ctx).map_err(|what| {
                report(policy, &state, &format!("ngx.ctx {what}"));
                Failed::Raised
            }),
            Err(error) => Err(self.failed(policy, &state, &error)),
        });
        (state, result)
    }

    fn failed(&self, policy: &LuaPolicy, state: &State, error: &mlua::Error) -> Failed {
        if is_memory(error) {
            report(policy, state, "it used more memory than it may");
            // What the handler left behind goes before the next one needs the room.
            let _ = self.lua.gc_collect();
            return Failed::TooMuchMemory;
        }
        report(policy, state, &message(error));
        Failed::Raised
    }
}

/// The handlers of a policy's table. Another name in it is a mistake.
fn returned(table: &Table) -> mlua::Result<[Option<Function>; 4]> {
    let mut handlers = [const { None }; 4];
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        let name = key.to_string()?;
        // A module may say more about itself than handlers; a function that no phase calls is a rule that never holds.
        let Value::Function(function) = value else { continue };
        match Phase::ALL.iter().position(|phase| phase.name() == name) {
            Some(index) => handlers[index] = Some(function),
            None => return Err(mlua::Error::runtime(format!("there is no handler {name}: access, header_filter, body_filter or log"))),
        }
    }
    if handlers.iter().all(Option::is_none) {
        return Err(mlua::Error::runtime("the policy has no handler: access, header_filter, body_filter or log"));
    }
    Ok(handlers)
}

fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_memory(cause),
        mlua::Error::RuntimeError(what) => what.contains("not enough memory"),
        _ => false,
    }
}

/// An error's first line: what happened and where, without the stack.
fn message(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => message(cause),
        mlua::Error::RuntimeError(what) | mlua::Error::SyntaxError { message: what, .. } => what.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().chars().take(ERROR_CHARS_MAX).collect()
}

/// What went wrong, in the log: where in the policy, and for which request.
fn report(policy: &LuaPolicy, state: &State, what: &str) {
    let what = match what.strip_prefix(name(policy)) {
        Some(rest) => format!("{}{}", policy.file, scrub(rest)),
        None => format!("{}: {}", policy.file, scrub(what)),
    };
    log_lines::policy(Severity::Error, "policy failed", &state.head.request_id, &format!("{what} (in {})", state.phase.name()));
}
