//! Runs a test in a process whose libcuda is the mock, and controls that.

use std::ffi::{CStr, c_char};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::{Library, Symbol};
pub use sage_mock_driver::{Config, Live};

/// Set in the process of a test.
const INSIDE: &str = "SAGE_MOCK_DRIVER";

/// Runs `body` with the mock for libcuda. A process finds its driver once, so `body` runs in a process of its own:
/// this test executable again, told to run only the test called `name`, its path in this executable.
pub fn with_driver(name: &str, body: impl FnOnce(&Mock)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&Mock::open());
    }
    // A colon would end the path.
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mock-{}-{}", std::process::id(), name.replace("::", "-")));
    std::fs::create_dir_all(&folder).expect("a folder for the driver");
    for file in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(file);
        let _ = std::fs::remove_file(&link);
        symlink(library(), link).expect("a link to the driver");
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", &folder)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the process runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let _ = std::fs::remove_dir_all(&folder);
    assert!(output.status.success(), "{name}: {}\n{stdout}{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "there is no test {name}: {stdout}");
    // A panic that something caught is a panic.
    assert!(!stderr.contains("panicked"), "{name}: {stderr}");
    print!("{stdout}");
}

/// The mock, which Cargo builds beside the tests.
fn library() -> PathBuf {
    let path = std::env::current_exe().expect("this test").with_file_name("libsage_mock_driver.so");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// The controls of the mock.
pub struct Mock {
    library: Library,
}

impl Mock {
    fn open() -> Mock {
        // SAFETY: the mock has no initialisers.
        let library = unsafe { Library::new("libcuda.so.1") }.expect("the mock");
        Mock { library }
    }

    /// # Panics
    ///
    /// If a driver without controls was loaded.
    fn control<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: callers name a control with its type.
        unsafe { self.library.get(name.as_bytes()) }.expect("the driver is the mock")
    }

    /// Sets what the driver pretends to be.
    pub fn configure(&self, config: Config) {
        self.control::<extern "C" fn(Config)>("mock_configure")(config);
    }

    /// Counts calls anew, and makes call number `call` (from 1) fail with `code`.
    pub fn fail(&self, call: u64, code: u32) {
        self.control::<extern "C" fn(u64, u32)>("mock_fail")(call, code);
    }

    /// Counts calls anew; none fails.
    pub fn count(&self) {
        self.fail(0, 0);
    }

    /// Calls since then.
    pub fn calls(&self) -> u64 {
        self.control::<extern "C" fn() -> u64>("mock_calls")()
    }

    /// Name of call number `call` (from 1).
    pub fn call_name(&self, call: u64) -> String {
        let name = self.control::<extern "C" fn(u64) -> *const c_char>("mock_call_name")(call);
        assert!(!name.is_null(), "there was no call {call}");
        // SAFETY: names are constants.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Names of all calls.
    pub fn call_names(&self) -> Vec<String> {
        (1..=self.calls()).map(|call| self.call_name(call)).collect()
    }

    /// What is alive.
    pub fn live(&self) -> Live {
        self.control::<extern "C" fn() -> Live>("mock_live")()
    }

    /// What no correct program does.
    pub fn violations(&self) -> String {
        let mut text = vec![0u8; 4096];
        let write = self.control::<unsafe extern "C" fn(*mut u8, usize) -> usize>("mock_violations");
        // SAFETY: `text` has that room.
        let len = unsafe { write(text.as_mut_ptr(), text.len()) };
        text.truncate(len);
        String::from_utf8_lossy(&text).into_owned()
    }
}
