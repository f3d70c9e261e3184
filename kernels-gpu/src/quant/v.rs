//! V to FP8 or to FP16.

use sage_spec::params::QuantizeParams;
use sage_spec::schedule::Statistic;

use super::lanes::Position;
use super::posted::Eight;
use super::stats;

// A module has what its kernels need.
#[cfg(feature = "sm_80")]
pub mod f16;
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
pub mod fp8;

/// The thread's eight channels: what to subtract, if V is smoothed, and what to multiply by.
struct Channels<const SMOOTHED: bool> {
    mean: [f32; 8],
    inverse_scale: [f32; 8],
}

impl<const SMOOTHED: bool> Channels<SMOOTHED> {
    /// # Safety
    /// The head's statistics have smaller tickets.
    #[inline(always)]
    unsafe fn wait<const HEAD_DIM: u32>(
        p: &QuantizeParams,
        head: u32,
        first_channel: u32,
        inverse_scale: Option<Eight>,
    ) -> Self {
        let mut mean = [0.0; 8];
        if SMOOTHED {
            let row = stats::statistic::<HEAD_DIM>(p, Statistic::VMean, head);
            // SAFETY: forwarded contract.
            mean = unsafe { Eight::request(row + (first_channel * 4) as u64) }.wait();
        }
        Channels { mean, inverse_scale: inverse_scale.map_or([0.0; 8], Eight::wait) }
    }

    /// Value to be rounded, of channel `i`.
    #[inline(always)]
    fn scale(&self, i: usize, x: f32) -> f32 {
        (if SMOOTHED { x - self.mean[i] } else { x }) * self.inverse_scale[i]
    }
}

/// First of the eight channels that the thread at `position` quantizes: to FP16 as it has them, to FP8 by octets.
#[inline(always)]
pub fn first_channel<const HEAD_DIM: u32, const V_IS_F16: bool>(position: Position) -> u32 {
    if V_IS_F16 { position.first_feature } else { octet_of::<HEAD_DIM>(position.thread) * 8 }
}

/// Which eight channels a thread has of a tile in FP8.
#[inline(always)]
fn octet_of<const HEAD_DIM: u32>(thread: u32) -> u32 {
    thread / 32 % (HEAD_DIM / 64) * 8 + thread % 8
}
