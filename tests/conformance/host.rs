//! Cases on the executor.

use conformance_kernels::Buffers;
use conformance_kernels::hopper::Mapped;
use cuda_std::executor::{Fault, Launch, Memory, TensorMap};

use crate::cases::{CONTROL_THREADS, Case, Kernel};

/// Bytes of shared memory of most cases: images and a barrier.
pub const SHARED_BYTES: u32 = 32 << 10;

/// The words that `case` writes.
pub fn run(case: &Case) -> Vec<u32> {
    let memory = &mut Memory::new();
    let bytes: Vec<u8> = case.input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let output_bytes = case.threads as usize * case.outputs * 4;
    let buffers = Buffers {
        input: memory.upload("input", &bytes),
        image: memory.upload("image", &case.image),
        output: memory.alloc("output", output_bytes),
        image_bytes: case.image.len() as u32,
        threads: case.threads,
    };
    let Case { shared_bytes, seed, .. } = *case;
    let launch = Launch { shared_bytes, seed, ..Launch::new(case.name, case.threads / case.block, case.block) };
    let result = match case.kernel {
        // SAFETY: the executor checks what the kernel asks for.
        Kernel::Plain(kernel) => launch.run(memory, || unsafe { kernel(buffers) }),
        Kernel::Mapped(kernel) => {
            let tiles = case.tiles.expect("a mapped case has tiles");
            let [width, rows, _] = tiles.extents;
            let map = TensorMap {
                base: buffers.image,
                element_bytes: 1,
                extents: tiles.extents,
                strides: [u64::from(width), u64::from(width * rows)],
                box_extents: [tiles.box_extents[0], tiles.box_extents[1], 1],
                swizzle_bytes: tiles.box_extents[0],
            };
            let box_bytes = tiles.box_extents[0] * tiles.box_extents[1];
            let mapped = Mapped { map: map.encode(), buffers, origin: tiles.origin, box_bytes };
            // SAFETY: the executor checks what the kernel asks for.
            launch.run(memory, || unsafe { kernel(mapped) })
        }
    };
    result.unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(memory.first_undefined(buffers.output, output_bytes), None, "{}", case.name);
    let bytes = memory.read(buffers.output, output_bytes);
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Runs a kernel that has a mistake, on buffers of exactly the bytes that it may touch.
///
/// # Errors
///
/// What it does wrong.
pub fn run_control(name: &str, kernel: unsafe fn(Buffers)) -> Result<(), Fault> {
    let memory = &mut Memory::new();
    let bytes = CONTROL_THREADS as usize * 4;
    let buffers = Buffers {
        input: memory.upload("input", &vec![0; bytes]),
        image: memory.alloc("image", bytes),
        output: memory.upload("output", &vec![0; bytes]),
        image_bytes: bytes as u32,
        threads: CONTROL_THREADS,
    };
    let launch = Launch { shared_bytes: SHARED_BYTES, ..Launch::new(name, 1, CONTROL_THREADS) };
    // SAFETY: the executor checks what the kernel asks for, and refuses what it does.
    launch.run(memory, || unsafe { kernel(buffers) })
}
