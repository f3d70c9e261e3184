//! Who takes part, and how long a turn takes.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Milliseconds of one call.
#[derive(Clone, Copy)]
pub struct Times {
    pub wall: f64,
    /// Of all threads; NaN if it cannot be told.
    pub cpu: f64,
}

/// A way to compute attention.
pub struct Contestant<'a> {
    pub name: String,
    /// One call, timed.
    pub run: Box<dyn FnMut() -> Result<Times, Box<dyn Error>> + 'a>,
    pub times: Vec<Times>,
}

impl<'a> Contestant<'a> {
    pub fn new(name: String, run: impl FnMut() -> Result<Times, Box<dyn Error>> + 'a) -> Self {
        Contestant { name, run: Box::new(run), times: Vec::new() }
    }

    /// Minimum and median of what `of` says of each turn.
    pub fn sorted(&self, of: fn(&Times) -> f64) -> (f64, f64) {
        let mut times: Vec<f64> = self.times.iter().map(of).collect();
        times.sort_by(f64::total_cmp);
        (times[0], times[times.len() / 2])
    }
}

/// Milliseconds that the threads of this process have run.
fn cpu_ms() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let ns = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.map(|task| ns(task).unwrap_or(f64::NAN)).sum::<f64>() / 1e6
}

/// Times `work`, and hands on its result.
pub fn time<T>(work: impl FnOnce() -> T) -> (Times, T) {
    let (cpu, start) = (cpu_ms(), Instant::now());
    let result = work();
    (Times { wall: start.elapsed().as_secs_f64() * 1e3, cpu: cpu_ms() - cpu }, result)
}

/// Another program that computes attention when told to.
pub struct Peer {
    pub name: String,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    child: Child,
}

impl Peer {
    /// Starts `command` as [`Peer`]s are started: `--serve`, the heads and the threads.
    pub fn start(command: &str, heads: [usize; 2], head_dim: usize, threads: usize) -> Result<Peer, Box<dyn Error>> {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().ok_or("--peer is empty")?)
            .args(words)
            .args(["--serve", "--heads", &heads[0].to_string(), "--kv-heads", &heads[1].to_string()])
            .args(["--head-dim", &head_dim.to_string(), "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take().ok_or("no pipe to the peer")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no pipe from the peer")?);
        let mut name = String::new();
        answers.read_line(&mut name)?;
        Ok(Peer { name: name.trim().to_owned(), ask, answers, child })
    }

    /// One call.
    pub fn run(&mut self, seqlen_q: usize, seqlen: usize, causal: bool) -> Result<Times, Box<dyn Error>> {
        writeln!(self.ask, "{seqlen_q} {seqlen} {}", i32::from(causal))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut numbers = line.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(wall)), Some(Ok(cpu))) => Ok(Times { wall, cpu }),
            _ => Err(format!("the peer answered {line:?} instead of two times").into()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
