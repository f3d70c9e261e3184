//! What attention on the CPU asks of the process: memory, allocations and threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sage_attn::{Attention, DType, Device, Layout as Order, Precision, Tensor, TensorView};
use sage_tests::generate::Random;

/// The system's allocator, counted.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// The tests watch the whole process, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Counts an allocation.
fn add(bytes: usize) {
    CALLS.fetch_add(1, Relaxed);
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: all calls go to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one call took.
struct Usage {
    /// Largest number of bytes at a time, with inputs and output.
    peak: usize,
    /// Bytes of inputs and outputs.
    operands: usize,
    /// Calls of the allocator.
    calls: usize,
}

/// One head of 128 features in f32, causal.
fn usage(pool: &rayon::ThreadPool, precision: Precision, seqlen_q: usize, seqlen: usize) -> Usage {
    let before = LIVE.load(Relaxed);
    let tensor = |tokens: usize, seed| -> Vec<f32> {
        let mut random = Random(seed);
        (0..tokens * 128).map(|_| random.unit() - 0.5).collect()
    };
    let (q, k, v) = (tensor(seqlen_q, 1), tensor(seqlen, 2), tensor(seqlen, 3));
    let (q_shape, shape) = ([1, 1, seqlen_q, 128], [1, 1, seqlen, 128]);
    let view = |x| TensorView::new(x, &shape, Order::Hnd).unwrap();
    let (q, k, v) = (TensorView::new(&q, &q_shape, Order::Hnd).unwrap(), view(&k), view(&v));
    let mut out = Tensor::zeros(DType::F32, q_shape).unwrap();
    let operands = (2 * seqlen_q + 2 * seqlen) * 128 * 4;
    let attention = Attention::new().causal(true).precision(precision).device(Device::Cpu);

    PEAK.store(LIVE.load(Relaxed), Relaxed);
    let calls = CALLS.load(Relaxed);
    pool.install(|| attention.forward_into(&q, &k, &v, &mut out.view_mut().unwrap()).unwrap());
    Usage { peak: PEAK.load(Relaxed) - before, operands, calls: CALLS.load(Relaxed) - calls }
}

/// Memory and allocations of long sequences, and the threads they ran on.
#[test]
fn memory_and_threads() {
    let _turn = TURN.lock();
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, two) = (pool(1), pool(2));
    for precision in [Precision::Exact, Precision::Int8, Precision::Int4] {
        usage(&two, precision, 256, 256); // what is allocated once per process
        let [short, long] = [8192, 16_384].map(|seqlen| usage(&two, precision, seqlen, seqlen));
        // What grows with the length must leave room, within a fifth, for what does not; at 65,536 tokens a fifth
        // of the operands is 25 MiB.
        let growth = |usage: &Usage| usage.peak - usage.operands;
        let per_token = (growth(&long).saturating_sub(growth(&short))) as f64 / 8192.0;
        let fixed = growth(&short) as f64 - per_token * 8192.0;
        let at_64k = 1.0 + (per_token * 65_536.0 + fixed) / (4.0 * 65_536.0 * 512.0);
        println!("{precision:?}: {per_token:.0} bytes a token, {fixed:.0} besides, {at_64k:.3} at 65,536 tokens");
        assert!(at_64k <= 1.2, "{precision:?}: {at_64k} times the inputs and outputs at 65,536 tokens");

        // Threads allocate before they start; blocks and tiles do not. One thread, because which thread takes what
        // decides how often its buffers are made, and lengths at which a tile is shared by as many blocks as ever;
        // rayon's queue of jobs may grow now and then.
        let calls = [4096, 8192].map(|seqlen| usage(&one, precision, seqlen, seqlen).calls);
        println!("{precision:?}: {} allocations, {} for twice the tokens", calls[0], calls[1]);
        assert!(calls[1] <= calls[0] + 4, "{precision:?}: {calls:?} allocations");

        let decoding = usage(&two, precision, 1, 16_384);
        let extra = decoding.peak - decoding.operands;
        assert!(extra <= decoding.operands / 3, "{precision:?}: {extra} bytes more when decoding");
    }
    // Had any of it run outside the caller's pool, rayon would have started its own.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("only the caller's pool was used");
}

/// The whole of it; takes a minute on two cores.
#[test]
#[ignore = "a minute"]
fn memory_at_65536_tokens() {
    let _turn = TURN.lock();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for precision in [Precision::Exact, Precision::Int8] {
        let Usage { peak, operands, .. } = usage(&pool, precision, 65_536, 65_536);
        let ratio = peak as f64 / operands as f64;
        println!("{precision:?}: {ratio:.3} times the inputs and outputs");
        assert!(ratio <= 1.2, "{precision:?}: {ratio}");
    }
}
