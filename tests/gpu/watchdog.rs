//! A hang becomes a failure with a name: if nothing has come back from the GPU for `SAGE_GPU_WATCHDOG` seconds
//! (default 30), the process says which tests were running and aborts.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use sage_attn::device::Gpu;

use crate::harness::number;

/// Tests that run, and when one last had something from the GPU.
struct State {
    running: Vec<String>,
    beat: Option<Instant>,
}

static STATE: Mutex<State> = Mutex::new(State { running: Vec::new(), beat: None });
static THREAD: Once = Once::new();

fn state() -> MutexGuard<'static, State> {
    // Tests that fail do so elsewhere, so this holds whatever they left.
    STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Something has come back.
pub fn beat() {
    state().beat = Some(Instant::now());
}

/// A test under watch, until this is dropped.
pub struct Watch(String);

impl Watch {
    /// Watches the test that the calling thread runs.
    pub fn new() -> Watch {
        THREAD.call_once(|| {
            let limit = Duration::from_secs(number("SAGE_GPU_WATCHDOG", 30));
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(Duration::from_millis(200));
                    let state = state();
                    let silent = state.beat.is_some_and(|beat| beat.elapsed() > limit);
                    if silent && !state.running.is_empty() {
                        eprintln!("HANG: nothing came back for {limit:?} in {}", state.running.join(", "));
                        std::process::abort();
                    }
                }
            });
        });
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        state().running.push(name.clone());
        beat();
        Watch(name)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = state();
        if let Some(at) = state.running.iter().position(|name| *name == self.0) {
            state.running.swap_remove(at);
        }
    }
}

/// A GPU, and the watch over the test that uses it.
pub struct Watched {
    pub gpu: Arc<Gpu>,
    pub _watch: Watch,
}

impl Deref for Watched {
    type Target = Arc<Gpu>;

    fn deref(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

#[test]
fn a_hang_is_a_named_failure() {
    let output = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "watchdog::the_process_that_hangs", "--ignored", "--nocapture"])
        .env("SAGE_GPU_WATCHDOG", "1")
        .output()
        .expect("the child runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("HANG: nothing came back for 1s"), "{stderr}");
    assert!(stderr.contains("watchdog::the_process_that_hangs"), "{stderr}");
}

#[test]
#[ignore = "hangs; the test above runs it in a process of its own"]
fn the_process_that_hangs() {
    let _watch = Watch::new();
    std::thread::sleep(Duration::from_secs(20));
}
