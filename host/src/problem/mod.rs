//! A validated attention request.
//!
//! [`Request`] is what a caller says; [`Problem`] is the same after every rule has been checked and
//! every default filled in. Its fields are private and [`Problem::new`] is the only way to get one,
//! so a planner or a launcher never meets an unchecked value.

mod kernel;
mod modifiers;
mod sequences;
mod tensor;
mod validate;

pub use modifiers::{BiasSpec, Modifiers, PairSpec};
pub use sequences::Sequences;
pub use tensor::{DType, Element, Layout, TensorSpec};

use sage_spec::symbol::Stem;
use sage_spec::{Alignment, Band, Dims, PvFormat, ScaleGranularity, Window};

use crate::error::Error;

/// Number format of Q Kᵀ.
///
/// Example: [`Problem`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// [`Precision::Int8`], or that of the kernel asked for by name. INT8 with smoothed K is the
    /// default because its error is below that of the FP8 product that follows; INT4 is opt-in.
    #[default]
    Auto,
    /// Q and K in 4 bits.
    Int4,
    /// Q and K in 8 bits.
    Int8,
    /// No quantization: f32 arithmetic, on the CPU only.
    Exact,
}

/// Which means are subtracted before quantizing. Results stay those of the original tensors: K's mean
/// shifts every score of a row alike, Q's is added back as ΔS, V's is added to the output.
///
/// ```
/// use sage_attn::Smoothing;
/// assert_eq!(Smoothing { q: true, k: true, v: false }.name(), "q,k");
/// assert_eq!(Smoothing::NONE.name(), "none");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Smoothing {
    /// Subtract each query block's mean from Q. Default: on for INT4, off for INT8.
    pub q: bool,
    /// Subtract the token mean from K. Default: on.
    pub k: bool,
    /// Subtract the channel means from V. Default: off.
    pub v: bool,
}

impl Smoothing {
    /// No smoothing.
    pub const NONE: Smoothing = Smoothing { q: false, k: false, v: false };

    /// The default for a precision of Q and K.
    pub const fn default_for(codes: sage_spec::Precision) -> Smoothing {
        Smoothing { q: matches!(codes, sage_spec::Precision::Int4), k: true, v: false }
    }

    /// Name on the command line and in JSON: the smoothed tensors, as in `q,k`, or `none`.
    pub fn name(self) -> String {
        let names = [("q", self.q), ("k", self.k), ("v", self.v)];
        let on: Vec<&str> = names.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        if on.is_empty() { "none".into() } else { on.join(",") }
    }
}

/// What a caller asks for, unchecked.
///
/// Example: [`Problem`].
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Queries, `[B, Hq, M, D]`.
    pub q: TensorSpec,
    /// Keys, `[B, Hkv, N, D]`.
    pub k: TensorSpec,
    /// Values, `[B, Hkv, N, Dv]`.
    pub v: TensorSpec,
    /// Output, `[B, Hq, M, Dv]`.
    pub out: TensorSpec,
    /// Rows see keys up to their position, which [`Modifiers::alignment`] says, instead of every key.
    pub causal: bool,
    /// Windows, soft-cap, ALiBi, bias, masks and sinks.
    pub modifiers: Modifiers,
    /// Sequences packed along the token axis of tensors whose batch is 1; `None`: each batch entry is
    /// one sequence.
    pub sequences: Option<Sequences>,
    /// Factor of Q Kᵀ; `None` is `1 / sqrt(D)`. Zero is allowed and weighs every visible key alike.
    pub sm_scale: Option<f32>,
    /// Number format of Q Kᵀ.
    pub precision: Precision,
    /// Which elements of Q and of K share a scale.
    pub granularity: ScaleGranularity,
    /// `None` is [`Smoothing::default_for`] the precision.
    pub smoothing: Option<Smoothing>,
    /// Number format of P V; `None` is the best the device has.
    pub pv: Option<PvFormat>,
    /// Name of the attention kernel to use, e.g. `sm89_int8_fp8_fwd`; `None` lets the planner choose.
    pub kernel: Option<String>,
    /// Whether to return the log-sum-exp of every row.
    pub return_lse: bool,
}

impl Request {
    /// A request with every option at its default.
    pub fn new(q: TensorSpec, k: TensorSpec, v: TensorSpec, out: TensorSpec) -> Request {
        Request {
            q,
            k,
            v,
            out,
            causal: false,
            modifiers: Modifiers::default(),
            sequences: None,
            sm_scale: None,
            precision: Precision::Auto,
            granularity: ScaleGranularity::PerThread,
            smoothing: None,
            pv: None,
            kernel: None,
            return_lse: false,
        }
    }
}

/// A request that satisfies every rule, with its defaults filled in.
///
/// ```
/// use sage_attn::error::Operand;
/// use sage_attn::problem::{Problem, Request, TensorSpec};
/// use sage_attn::{DType, Layout, Precision};
///
/// let q = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
/// let kv = TensorSpec::new(Operand::K, DType::F16, &[1, 2, 300, 64], Layout::Hnd)?;
/// let request = Request { causal: true, precision: Precision::Int4, ..Request::new(q, kv, kv, q) };
/// let problem = Problem::new(request)?;
/// assert_eq!((problem.dims().num_heads_kv, problem.sm_scale()), (2, 0.125));
/// assert!(problem.smoothing().q, "the default for INT4");
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    dims: Dims,
    request: Request,
    sm_scale: f32,
    codes: Option<sage_spec::Precision>,
    smoothing: Smoothing,
    kernel: Option<Stem>,
}

impl Problem {
    /// Checks `request`.
    ///
    /// # Errors
    ///
    /// [`crate::error::Invalid`] or [`crate::error::ModifierError`] where the request contradicts itself,
    /// [`crate::error::Unsupported`] where it is sound but too large.
    pub fn new(request: Request) -> Result<Problem, Error> {
        let dims = validate::dims(&request)?;
        validate::modifiers(&request, &dims)?;
        let sm_scale = validate::sm_scale(request.sm_scale, dims.head_dim)?;
        let kernel = request.kernel.as_deref().map(kernel::find).transpose()?;
        if let Some(stem) = &kernel {
            kernel::check_conflict(stem, &request)?;
        }
        let codes = match request.precision {
            Precision::Auto => Some(kernel.map_or(sage_spec::Precision::Int8, |stem| stem.qk)),
            Precision::Int4 => Some(sage_spec::Precision::Int4),
            Precision::Int8 => Some(sage_spec::Precision::Int8),
            Precision::Exact => None,
        };
        let default = codes.map_or(Smoothing::NONE, Smoothing::default_for);
        let smoothing = match codes {
            Some(_) => request.smoothing.unwrap_or(default),
            None => Smoothing::NONE,
        };
        Ok(Problem { dims, request, sm_scale, codes, smoothing, kernel })
    }

    /// What the problem was made from.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Extents.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Queries, `[B, Hq, M, D]`.
    pub fn q(&self) -> &TensorSpec {
        &self.request.q
    }

    /// Keys, `[B, Hkv, N, D]`.
    pub fn k(&self) -> &TensorSpec {
        &self.request.k
    }

    /// Values, `[B, Hkv, N, Dv]`.
    pub fn v(&self) -> &TensorSpec {
        &self.request.v
    }

    /// Output, `[B, Hq, M, Dv]`.
    pub fn out(&self) -> &TensorSpec {
        &self.request.out
    }

    /// Type of q, k and v.
    pub fn input_dtype(&self) -> DType {
        self.request.q.dtype
    }

    /// Whether the causal mask applies.
    pub fn causal(&self) -> bool {
        self.request.causal
    }

    /// Windows, soft-cap, ALiBi, bias, masks and sinks.
    pub fn modifiers(&self) -> &Modifiers {
        &self.request.modifiers
    }

    /// The keys that rows see by position; of a whole batch entry, not of packed sequences.
    pub fn band(&self) -> Band {
        let Modifiers { alignment, window, .. } = self.request.modifiers;
        Band::new(&self.dims, self.causal(), alignment, window)
    }

    /// Whether the causal mask, bottom-right aligned, is all there is: what every kernel computes. A
    /// window that excludes no key, or an alignment that changes nothing, is none.
    pub fn is_plain(&self) -> bool {
        let plain = Band::new(&self.dims, self.causal(), Alignment::BottomRight, Window::UNBOUNDED);
        self.request.modifiers.names().is_empty() && self.band() == plain
    }

    /// Whether only the general kernels compute it on a GPU: it is not [`Problem::is_plain`], or its heads are
    /// wider than the others take.
    pub fn needs_general_kernel(&self) -> bool {
        !self.is_plain() || self.dims.is_wide()
    }

    /// Whether something depends on what smoothing K takes from all scores of a row alike: the
    /// log-sum-exp, a soft-cap or sinks.
    pub fn needs_whole_scores(&self) -> bool {
        let Modifiers { softcap, sinks, .. } = self.request.modifiers;
        self.return_lse() || softcap.is_some() || sinks.is_some()
    }

    /// The packed sequences, if there are any.
    pub fn sequences(&self) -> Option<&Sequences> {
        self.request.sequences.as_ref()
    }

    /// The problem of packed sequence `index`: its tokens alone, as a batch of one. The first element of
    /// each of its tensors is that of the sequence's first token; bias, mask and slopes are those of
    /// batch entry `index`, if they have several.
    pub fn sequence(&self, index: usize) -> Option<Problem> {
        self.sequence_batch(index, 1)
    }

    /// The problem of the packed sequences `index .. index + count`, which have equal lengths, as a batch; see
    /// [`Problem::sequence`] and [`Sequences::alike_from`].
    pub(crate) fn sequence_batch(&self, index: usize, count: usize) -> Option<Problem> {
        let sequences = self.sequences().filter(|sequences| index < sequences.len())?;
        let (m, n) = (sequences.q(index).len(), sequences.kv(index).len());
        let of = |spec: &TensorSpec, tokens: usize| spec.sequence_batch(tokens, count);
        let request = Request {
            q: of(self.q(), m),
            k: of(self.k(), n),
            v: of(self.v(), n),
            out: of(self.out(), m),
            modifiers: self.request.modifiers.of_sequences(count, m, n),
            sequences: None,
            ..self.request.clone()
        };
        Some(Problem { dims: Dims { batch: count, seqlen_q: m, seqlen_kv: n, ..self.dims }, request, ..self.clone() })
    }

    /// Factor of Q Kᵀ, finite and not negative.
    pub fn sm_scale(&self) -> f32 {
        self.sm_scale
    }

    /// Integer type of Q and K; `None` is exact arithmetic.
    pub fn codes(&self) -> Option<sage_spec::Precision> {
        self.codes
    }

    /// Which elements of Q and of K share a scale.
    pub fn granularity(&self) -> ScaleGranularity {
        self.request.granularity
    }

    /// Which means are subtracted before quantizing.
    pub fn smoothing(&self) -> Smoothing {
        self.smoothing
    }

    /// Number format of P V if the caller chose one, by itself or through a kernel's name.
    pub fn pv(&self) -> Option<PvFormat> {
        self.request.pv.or(self.kernel.map(|stem| stem.pv))
    }

    /// The attention kernel if the caller chose one.
    pub fn kernel(&self) -> Option<Stem> {
        self.kernel
    }

    /// Whether the log-sum-exp is wanted.
    pub fn return_lse(&self) -> bool {
        self.request.return_lse
    }

    /// Whether there is no output element, so that there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.dims.batch == 0 || self.dims.num_heads_q == 0 || self.dims.seqlen_q == 0
    }

    /// Elements of the log-sum-exp, `B * Hq * M`.
    pub fn lse_elems(&self) -> usize {
        if self.is_empty() { 0 } else { self.dims.batch * self.dims.num_heads_q * self.dims.seqlen_q }
    }

    /// Multiply-adds counted as two, of both matrix products over the keys that are visible. The
    /// usual `4 B H M N D` (or `2 B H M N (D + Dv)`), exactly halved or so by the causal mask. A boolean mask counts for nothing.
    pub fn flops(&self) -> f64 {
        if let Some(sequences) = self.sequences() {
            return (0..sequences.len()).filter_map(|index| self.sequence(index)).map(|problem| problem.flops()).sum();
        }
        let d = &self.dims;
        let depth = (d.head_dim + d.head_dim_v) as f64;
        2.0 * d.batch as f64 * d.num_heads_q as f64 * self.band().pairs(d.seqlen_q) * depth
    }
}
