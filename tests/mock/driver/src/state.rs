//! Everything the driver knows, behind one lock.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use crate::{Config, Live};

/// `CUresult`.
pub type Code = u32;
/// A handle of the driver API, as the number behind it.
pub type Handle = usize;

pub const SUCCESS: Code = 0;
pub const INVALID_VALUE: Code = 1;
pub const OUT_OF_MEMORY: Code = 2;
pub const NOT_INITIALIZED: Code = 3;
pub const NO_DEVICE: Code = 100;
pub const INVALID_DEVICE: Code = 101;
pub const INVALID_CONTEXT: Code = 201;
pub const INVALID_HANDLE: Code = 400;
pub const NOT_FOUND: Code = 500;

/// Errors after which a context is unusable.
const STICKY: [Code; 9] = [214, 220, 700, 702, 710, 714, 715, 716, 719];

/// A context.
#[derive(Default)]
pub struct Context {
    pub device: i32,
    /// How often a primary context is retained; 1 for others.
    pub references: u64,
    pub primary: bool,
    /// The error that made it unusable.
    pub fault: Option<Code>,
}

/// A loaded module.
pub struct Module {
    pub context: Handle,
    pub entries: Vec<String>,
}

/// A kernel of a module.
pub struct Function {
    pub module: Handle,
    /// Dynamic shared memory it may use.
    pub smem_bytes: u32,
}

/// Device memory, which is host memory.
pub struct Allocation {
    pub context: Handle,
    pub bytes: Vec<u8>,
    /// Bytes before the address that was handed out, and bytes from there on.
    pub offset: usize,
    pub len: usize,
}

/// The driver.
#[derive(Default)]
pub struct State {
    pub config: Option<Config>,
    pub started: bool,
    /// Names of the calls since the failure was set.
    pub calls: Vec<&'static CStr>,
    /// Which of them fails (from 1), and how.
    pub failure: Option<(u64, Code)>,
    pub violations: Vec<String>,
    pub current: BTreeMap<u64, Handle>,
    pub contexts: BTreeMap<Handle, Context>,
    pub streams: BTreeMap<Handle, Handle>,
    /// The context of an event, and whether it was recorded.
    pub events: BTreeMap<Handle, (Handle, bool)>,
    pub modules: BTreeMap<Handle, Module>,
    pub functions: BTreeMap<Handle, Function>,
    pub allocations: BTreeMap<Handle, Allocation>,
    threads: Vec<ThreadId>,
    last_handle: Handle,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The driver, locked.
pub struct Driver(MutexGuard<'static, Option<State>>);

impl std::ops::Deref for Driver {
    type Target = State;

    fn deref(&self) -> &State {
        self.0.as_ref().unwrap_or_else(|| unreachable!("`driver` fills it"))
    }
}

impl std::ops::DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut State {
        self.0.get_or_insert_default()
    }
}

/// Locks the driver.
pub fn driver() -> Driver {
    let mut guard = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_default();
    Driver(guard)
}

impl State {
    pub fn config(&self) -> Config {
        self.config.unwrap_or(Config::H200)
    }

    /// Counts a call; `Err` if it is the one that fails.
    pub fn call(&mut self, name: &'static CStr) -> Result<(), Code> {
        self.calls.push(name);
        match self.failure {
            Some((call, code)) if call == self.calls.len() as u64 => {
                if STICKY.contains(&code)
                    && let Some(context) = self.current().and_then(|handle| self.contexts.get_mut(&handle))
                {
                    context.fault.get_or_insert(code);
                }
                Err(code)
            }
            _ => Ok(()),
        }
    }

    /// [`State::call`] of a call that works in the calling thread's context, which is returned.
    pub fn call_in_context(&mut self, name: &'static CStr) -> Result<Handle, Code> {
        self.call(name)?;
        let handle = self.current().ok_or(INVALID_CONTEXT)?;
        self.check_fault(handle)?;
        Ok(handle)
    }

    /// Fails if `context` is unusable.
    pub fn check_fault(&self, context: Handle) -> Result<(), Code> {
        self.contexts.get(&context).ok_or(INVALID_CONTEXT)?.fault.map_or(Ok(()), Err)
    }

    /// A number for the calling thread.
    pub fn thread(&mut self) -> u64 {
        let id = std::thread::current().id();
        let known = self.threads.iter().position(|&thread| thread == id);
        known.unwrap_or_else(|| {
            self.threads.push(id);
            self.threads.len() - 1
        }) as u64
    }

    /// The context of the calling thread.
    pub fn current(&mut self) -> Option<Handle> {
        let thread = self.thread();
        self.current.get(&thread).copied()
    }

    /// A handle that was never used. The numbers 0, 1 and 2 name default streams.
    pub fn handle(&mut self) -> Handle {
        self.last_handle += 0x10;
        self.last_handle
    }

    /// The context of a stream, which is live.
    pub fn stream(&mut self, stream: Handle, what: &str) -> Result<Handle, Code> {
        if stream <= 2 {
            return self.current().ok_or(INVALID_CONTEXT);
        }
        let context = self.streams.get(&stream).copied();
        context.ok_or_else(|| self.violation(format!("{what}: {stream:#x} is not a stream"), INVALID_HANDLE))
    }

    /// Writes down what no correct program does; returns `code`.
    pub fn violation(&mut self, what: String, code: Code) -> Code {
        self.violations.push(what);
        code
    }

    pub fn live(&self) -> Live {
        Live {
            contexts: self.contexts.values().map(|context| context.references).sum(),
            modules: self.modules.len() as u64,
            streams: self.streams.len() as u64,
            events: self.events.len() as u64,
            allocations: self.allocations.len() as u64,
            bytes: self.allocations.values().map(|memory| memory.len as u64).sum(),
        }
    }
}

/// What a function of the driver API returns.
pub fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(SUCCESS)
}
