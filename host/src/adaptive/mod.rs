//! Adaptive precision: which layers and timesteps of a model may run in INT4.
//!
//! Three steps, each of which can be run, stored and read by itself:
//!
//! 1. A [`Calibrator`] is fed the queries, keys and values of attention calls while a model runs in
//!    full precision. It measures every candidate [`Choice`] against exact attention and appends what
//!    it measured to a file, so that an interrupted calibration goes on where it stopped.
//! 2. A [`Rule`] turns the [`Measurements`] into a [`PrecisionPlan`]: the percentile rule of
//!    SageAttention2's first report, or the largest share of INT4 within an error budget, given the
//!    [`Speeds`] of the kernels on the device at hand.
//! 3. A model asks the plan for each call: [`PrecisionPlan::at`].
//!
//! ```
//! use sage_attn::adaptive::{Calibrator, Choice, Rule, Sampling, Site, Speeds};
//! use sage_attn::{Attention, Layout, TensorView};
//!
//! let attention = Attention::new().causal(true);
//! let mut calibrator = Calibrator::new(vec![Choice::INT4, Choice::INT8], Sampling::default())?;
//! for layer in 0..4 {
//!     let x: Vec<f32> = (0..2 * 100 * 64).map(|i| ((i * (layer + 3)) % 17) as f32 / 8.0 - 1.0).collect();
//!     let x = TensorView::new(&x, &[1, 2, 100, 64], Layout::Hnd)?;
//!     let site = Site { layer, timestep: 0, sample: 0 };
//!     calibrator.observe(site, &attention, &x, &x, &x)?;
//! }
//!
//! let plan = Rule::percentile(25.0).plan(calibrator.measurements(), &Speeds::unmeasured())?;
//! assert_eq!(plan.int4_share(), 0.75);
//! let layer_3 = plan.at(3, 0).apply(attention); // an `Attention` to call `forward` on
//! println!("{}\n{layer_3:?}", plan.to_json());
//! # Ok::<(), sage_attn::Error>(())
//! ```

mod calibrator;
mod choice;
mod error;
mod journal;
mod measurements;
mod plan;
mod rank;
mod rule;
mod speeds;

pub use calibrator::{Calibrator, Sampling};
pub use choice::Choice;
pub use error::AdaptiveError;
pub use measurements::{Cell, Figures, Measurements, Site, Spread, Trial};
pub use plan::{Decision, Origin, PrecisionPlan};
pub use rule::Rule;
pub use speeds::Speeds;
