//! One thread of a kernel, on a stack of its own.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::vec::Vec;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// Bytes of a stack. Pages are committed when touched; a kernel's frame is a few KiB, or some tens without
/// optimisation.
const STACK_BYTES: usize = 256 << 10;

/// How a thread ends.
type End = Result<(), String>;

/// A thread of a kernel that can be resumed.
pub(super) struct Fiber {
    coroutine: Coroutine<(), (), End>,
}

/// What came of resuming a thread.
pub(super) enum Progress {
    /// It waits.
    Suspended,
    /// It has returned, or panicked with a message.
    Ended(End),
}

std::thread_local! {
    /// The yielder of the running fiber.
    static YIELDER: Cell<*const Yielder<(), ()>> = const { Cell::new(std::ptr::null()) };
}

impl Fiber {
    /// A thread that will run `kernel`.
    ///
    /// # Safety
    ///
    /// `kernel` outlives the fiber.
    pub(super) unsafe fn new(stack: DefaultStack, kernel: *const (dyn Fn() + '_)) -> Self {
        // SAFETY: only the lifetime changes, and the caller vouches for it.
        let kernel: *const (dyn Fn() + 'static) = unsafe { std::mem::transmute(kernel) };
        let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            YIELDER.set(yielder);
            // SAFETY: the caller of `new` vouches for it.
            catch_unwind(AssertUnwindSafe(|| unsafe { (*kernel)() })).map_err(|payload| message(&*payload))
        });
        Fiber { coroutine }
    }

    /// Runs the thread until it waits or ends.
    pub(super) fn resume(&mut self) -> Progress {
        match self.coroutine.resume(()) {
            CoroutineResult::Yield(()) => Progress::Suspended,
            CoroutineResult::Return(end) => Progress::Ended(end),
        }
    }

    /// The stack, for the next fiber.
    pub(super) fn into_stack(mut self) -> DefaultStack {
        if !self.coroutine.done() {
            // SAFETY: a kernel is device code: `Copy` values only, nothing on its stack is ever dropped.
            unsafe { self.coroutine.force_reset() };
        }
        self.coroutine.into_stack()
    }
}

/// Suspends the running thread until it is resumed.
pub(super) fn suspend() {
    let yielder = YIELDER.get();
    // SAFETY: set by the running fiber when it started or was last resumed; alive while it runs.
    unsafe { (*yielder).suspend(()) };
    YIELDER.set(yielder);
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| String::from(*text));
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Stacks that are not in use.
#[derive(Default)]
pub(super) struct Stacks(Vec<DefaultStack>);

impl Stacks {
    /// A stack.
    pub(super) fn take(&mut self) -> std::io::Result<DefaultStack> {
        self.0.pop().map_or_else(|| DefaultStack::new(STACK_BYTES), Ok)
    }

    /// Keeps a stack for later.
    pub(super) fn give(&mut self, stack: DefaultStack) {
        self.0.push(stack);
    }
}
