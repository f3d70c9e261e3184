//! SageAttention2 in pure Rust: `softmax(Q Kᵀ · sm_scale) V` with Q and K in INT4 or INT8 and P and V
//! in FP8 (or FP16), after smoothing.
//!
//! One call takes tensors in host memory and picks the device: an NVIDIA GPU through its driver, which
//! is opened at run time, or the CPU. The kernels are Rust too; they are embedded as PTX, so neither
//! building nor running needs a CUDA toolkit.
//!
//! ```
//! use sage_attn::half::f16;
//! use sage_attn::{Attention, Layout, Precision, TensorView};
//!
//! // Two sequences of 300 tokens, 8 query heads sharing 2 key/value heads, 64 features.
//! let q = vec![f16::from_f32(0.5); 2 * 8 * 300 * 64];
//! let kv = vec![f16::from_f32(0.25); 2 * 2 * 300 * 64];
//! let q = TensorView::new(&q, &[2, 8, 300, 64], Layout::Hnd)?;
//! let k = TensorView::new(&kv, &[2, 2, 300, 64], Layout::Hnd)?;
//!
//! let output = Attention::new()
//!     .causal(true)
//!     .precision(Precision::Int8)
//!     .return_lse(true)
//!     .forward(&q, &k, &k)?;
//!
//! assert_eq!(output.out.shape(), [2, 8, 300, 64]);
//! assert!(output.out.to_f32().iter().all(|x| (x - 0.25).abs() < 0.01));
//! println!("{} on {}", output.report.kernel, output.report.device);
//! # Ok::<(), sage_attn::Error>(())
//! ```
//!
//! # Layers
//!
//! * [`api`]: [`Attention`] and the tensors it works on; everything above.
//! * [`problem`]: a validated request. [`plan`]: which kernels run and where their buffers lie, decided
//!   without a GPU and explained by [`plan::Plan::explain`]. [`device`]: launches on device memory and
//!   streams of the caller, without allocation or synchronisation.
//! * [`cpu`]: attention on the CPU, on the best instruction set there is.
//! * [`mod@reference`]: the truth that kernels and the CPU path are tested against; [`metrics`] says how
//!   far apart two results are; [`plot`] draws charts.
//! * [`dlpack`]: tensors exchanged with other libraries without copying.
//! * [`adaptive`]: 4 or 8 bits per layer and timestep, decided by a calibration.
//! * `models` (feature `models`): whole models on top of the above.
//! * [`error`]: what can go wrong, one enum per phase.
//!
//! # Promises
//!
//! * The output and the log-sum-exp are `softmax` and `ln Σ exp` of the scores of the keys a row sees;
//!   a row that sees none is 0 and −∞.
//! * The causal mask is aligned bottom-right unless [`Alignment::TopLeft`] is asked for: row `i` of `M`
//!   sees keys up to `i + N − M`.
//! * Windows, soft-cap, ALiBi, biases, masks, sinks and packed sequences ([`SideInputs`]) are computed or
//!   refused with an error that names what is supported; none is ignored.
//! * No output elements (batch, heads or queries are 0): nothing happens, successfully.
//! * NaN and infinity are never dropped: they reach every row that attends to their head. Padding and
//!   unused memory never reach a result.
//! * The same plan on the same device gives the same bits, whatever else runs.
//! * Bad input is an [`Error`] that names the value and what would be right; nothing panics.

pub mod adaptive;
pub mod api;
#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
pub mod device;
pub mod dlpack;
pub mod error;
#[doc(hidden)] // for the command line
pub mod file;
pub mod metrics;
#[cfg(feature = "models")]
pub mod models;
pub mod plan;
pub mod plot;
pub mod problem;
pub mod reference;

pub use api::{
    Attend, Attended, Attention, BiasView, Device, KvCache, KvCacheOptions, MaskView, Merged, Output, Report,
    SideInputs, Summary, Tensor, TensorView, TensorViewMut, alibi_slopes, merge, merge_into,
};
pub use cudarc;
pub use error::Error;
pub use half;
pub use problem::{DType, Element, Layout, Precision, Sequences, Smoothing};
pub use sage_spec as spec;
pub use sage_spec::{Alignment, PvFormat, ScaleGranularity, Window};

/// Compiles the examples of the documents.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../../docs/kv_cache.md")]
    struct KvCache;
    #[doc = include_str!("../../docs/accuracy.md")]
    struct Accuracy;
}
