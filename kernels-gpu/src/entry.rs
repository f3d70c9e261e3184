//! Exported symbols: a table, no logic. Names follow `sage_spec::symbol`.

use cuda_std::prelude::*;
use sage_spec::modifiers::GeneralAttentionParams;
use sage_spec::params::*;

macro_rules! attention {
    ($($arch:ident, $config:ident, $row_bytes:literal => $name:ident, $scores:ident;)*) => { $(
        /// Forward attention of one query block per CTA.
        ///
        /// # Safety
        /// `sage_spec::params::AttentionParams` and `sage_spec::launch::attention`.
        #[kernel(max_threads = 128, min_blocks = 2)]
        pub unsafe fn $name(p: AttentionParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::attention::mma_sync::mainloop::kernel::<crate::attention::$arch::$config, $row_bytes>(&p) }
        }

        /// Raw scores of the same kernel, for tests.
        ///
        /// # Safety
        /// `sage_spec::params::ScoresParams` and `sage_spec::launch::attention`.
        #[kernel(max_threads = 128, min_blocks = 2)]
        pub unsafe fn $scores(p: ScoresParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::attention::mma_sync::scores::kernel::<crate::attention::$arch::$config, $row_bytes>(&p) }
        }
    )* };
}

macro_rules! general {
    ($($arch:ident, $config:ident, $row_bytes:literal => $name:ident;)*) => { $(
        /// Forward attention of half a query block and at most 128 channels of V per CTA, with modifiers.
        ///
        /// # Safety
        /// `sage_spec::modifiers::GeneralAttentionParams` and `sage_spec::launch::attention`.
        #[kernel(max_threads = 128, min_blocks = 2)]
        pub unsafe fn $name(p: GeneralAttentionParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::attention::mma_sync::general::kernel::<crate::attention::$arch::$config, $row_bytes>(&p) }
        }
    )* };
}

#[cfg(feature = "sm_80")]
general! {
    sm80, Int4D64, 32 => sm80_int4_f16_fwd_general_d64;
    sm80, Int4D128, 64 => sm80_int4_f16_fwd_general_d128;
    sm80, Int8D64, 64 => sm80_int8_f16_fwd_general_d64;
    sm80, Int8D128, 128 => sm80_int8_f16_fwd_general_d128;
    sm80, Int4D256, 128 => sm80_int4_f16_fwd_general_d256;
    sm80, Int8D256, 256 => sm80_int8_f16_fwd_general_d256;
}

#[cfg(feature = "sm_89")]
general! {
    sm89, Int4D64, 32 => sm89_int4_fp8_fwd_general_d64;
    sm89, Int4D128, 64 => sm89_int4_fp8_fwd_general_d128;
    sm89, Int8D64, 64 => sm89_int8_fp8_fwd_general_d64;
    sm89, Int8D128, 128 => sm89_int8_fp8_fwd_general_d128;
    sm89, Int4D256, 128 => sm89_int4_fp8_fwd_general_d256;
    sm89, Int8D256, 256 => sm89_int8_fp8_fwd_general_d256;
}

#[cfg(feature = "sm_80")]
attention! {
    sm80, Int4D64, 32 => sm80_int4_f16_fwd_d64, sm80_int4_f16_fwd_scores_d64;
    sm80, Int4D128, 64 => sm80_int4_f16_fwd_d128, sm80_int4_f16_fwd_scores_d128;
    sm80, Int8D64, 64 => sm80_int8_f16_fwd_d64, sm80_int8_f16_fwd_scores_d64;
    sm80, Int8D128, 128 => sm80_int8_f16_fwd_d128, sm80_int8_f16_fwd_scores_d128;
}

#[cfg(feature = "sm_89")]
attention! {
    sm89, Int4D64, 32 => sm89_int4_fp8_fwd_d64, sm89_int4_fp8_fwd_scores_d64;
    sm89, Int4D128, 64 => sm89_int4_fp8_fwd_d128, sm89_int4_fp8_fwd_scores_d128;
    sm89, Int8D64, 64 => sm89_int8_fp8_fwd_d64, sm89_int8_fp8_fwd_scores_d64;
    sm89, Int8D128, 128 => sm89_int8_fp8_fwd_d128, sm89_int8_fp8_fwd_scores_d128;
}

/// Attention on Hopper.
#[cfg(feature = "sm_90a")]
pub mod hopper {
    use super::*;
    use sage_spec::sm90::{Sm90AttentionParams, Sm90GeneralParams};

    /// Symbol, threads, padded head dimension, whether every key takes the exact exponential, whether there is ΔS.
    macro_rules! hopper {
        ($($name:ident = $threads:literal, $head_dim:literal, $exact:literal, $delta_s:literal;)*) => { $(
            /// Forward attention, persistent: each CTA takes work items until none is left.
            ///
            /// # Safety
            /// `sage_spec::sm90::Sm90AttentionParams`.
            #[kernel(max_threads = $threads, min_blocks = 1, parameter_align = 64)]
            pub unsafe fn $name(p: Sm90AttentionParams) {
                type Algorithm = crate::attention::sm90::Kernel<$head_dim, $exact, $delta_s>;
                const { assert!(<Algorithm as crate::attention::sm90::config::Config>::THREADS == $threads) };
                let maps = cuda_std::parameter_address!($name, p);
                // SAFETY: forwarded contract.
                unsafe { crate::attention::sm90::kernel::kernel::<Algorithm>(&p, maps) }
            }
        )* };
    }

    hopper! {
        sm90_int8_fp8_fwd_d64 = 640, 64, false, false;
        sm90_int8_fp8_fwd_d128 = 512, 128, false, false;
        sm90_int8_fp8_fwd_delta_s_d64 = 512, 64, false, true;
        sm90_int8_fp8_fwd_delta_s_d128 = 512, 128, false, true;
        sm90_int8_fp8_exp2_fwd_d64 = 512, 64, true, false;
        sm90_int8_fp8_exp2_fwd_d128 = 512, 128, true, false;
        sm90_int8_fp8_exp2_fwd_delta_s_d64 = 512, 64, true, true;
        sm90_int8_fp8_exp2_fwd_delta_s_d128 = 512, 128, true, true;
    }

    /// Symbol, padded head dimension.
    macro_rules! general {
        ($($name:ident = $head_dim:literal;)*) => { $(
            /// Forward attention with modifiers, persistent likewise.
            ///
            /// # Safety
            /// `sage_spec::sm90::Sm90GeneralParams`.
            #[kernel(max_threads = 384, min_blocks = 1, parameter_align = 64)]
            pub unsafe fn $name(p: Sm90GeneralParams) {
                let maps = cuda_std::parameter_address!($name, p);
                const { assert!(core::mem::offset_of!(Sm90GeneralParams, attention) == 0) };
                // SAFETY: forwarded contract.
                unsafe { crate::attention::sm90::kernel::kernel::<crate::attention::sm90::general::General<$head_dim>>(&p, maps) }
            }
        )* };
    }

    general! {
        sm90_int8_fp8_general_d64 = 64;
        sm90_int8_fp8_general_d128 = 128;
    }
}

/// The quantizers of one type of V, by input type and padded head dimension: threads of a CTA x CTAs whose
/// registers must fit on a multiprocessor (`sage_spec::launch::quantize_ctas_per_sm`, or fewer).
macro_rules! quantizers {
    ($v_is_f16:literal; $($element:ident, $head_dim:literal, $threads:literal x $ctas:literal => $name:ident;)*) => { $(
        /// Quantizes Q, K and V.
        ///
        /// # Safety
        /// `sage_spec::params::QuantizeParams` and `sage_spec::launch::quantize`.
        #[kernel(max_threads = $threads, min_blocks = $ctas)]
        pub unsafe fn $name(p: QuantizeParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::quant::quantize::quantize::<crate::quant::element::$element, $head_dim, $v_is_f16>(&p) }
        }
    )* };
}

#[cfg(feature = "sm_80")]
quantizers! {
    true;
    F16, 64, 128 x 6 => quantize_f16_f16_d64;
    F16, 128, 256 x 3 => quantize_f16_f16_d128;
    Bf16, 64, 128 x 6 => quantize_f16_bf16_d64;
    Bf16, 128, 256 x 3 => quantize_f16_bf16_d128;
    F32, 64, 128 x 6 => quantize_f16_f32_d64;
    F32, 128, 256 x 3 => quantize_f16_f32_d128;
}

#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
quantizers! {
    false;
    F16, 64, 128 x 6 => quantize_fp8_f16_d64;
    F16, 128, 256 x 3 => quantize_fp8_f16_d128;
    Bf16, 64, 128 x 6 => quantize_fp8_bf16_d64;
    Bf16, 128, 256 x 3 => quantize_fp8_bf16_d128;
    F32, 64, 128 x 6 => quantize_fp8_f32_d64;
    F32, 128, 256 x 3 => quantize_fp8_f32_d128;
}

// Of head dimension 256 only 16-bit types are read, and only for sm_80 and sm_89, which have attention for it.
#[cfg(feature = "sm_80")]
quantizers! {
    true;
    F16, 256, 512 x 2 => quantize_f16_f16_d256;
    Bf16, 256, 512 x 2 => quantize_f16_bf16_d256;
}

// One of them fits the shared memory of a multiprocessor of compute capability 8.9.
#[cfg(feature = "sm_89")]
quantizers! {
    false;
    F16, 256, 512 x 1 => quantize_fp8_f16_d256;
    Bf16, 256, 512 x 1 => quantize_fp8_bf16_d256;
}

/// The kernels of ΔS, by input type and padded head dimension: threads of a CTA, query blocks of a warp.
macro_rules! delta_s {
    ($($element:ident, $head_dim:literal, $threads:literal, $blocks:literal => $name:ident;)*) => { $(
        /// Scores of the query blocks' means.
        ///
        /// # Safety
        /// `sage_spec::params::DeltaSParams` and `sage_spec::launch::delta_s`.
        #[kernel(max_threads = $threads, min_blocks = 2)]
        pub unsafe fn $name(p: DeltaSParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::quant::delta_s::delta_s::<crate::quant::element::$element, $head_dim, $blocks>(&p) }
        }
    )* };
}

delta_s! {
    F16, 64, 128, 8 => delta_s_f16_d64;
    F16, 128, 256, 8 => delta_s_f16_d128;
    Bf16, 64, 128, 8 => delta_s_bf16_d64;
    Bf16, 128, 256, 8 => delta_s_bf16_d128;
    F32, 64, 128, 8 => delta_s_f32_d64;
    F32, 128, 256, 8 => delta_s_f32_d128;
}

#[cfg(any(feature = "sm_80", feature = "sm_89"))]
delta_s! {
    F16, 256, 512, 4 => delta_s_f16_d256;
    Bf16, 256, 512, 4 => delta_s_bf16_d256;
}

/// The kernels of the cache, by type of K's codes and head dimension.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
macro_rules! cache {
    ($($head_dim:literal, $int4:literal => $append:ident, $decode:ident;)*) => { $(
        /// Quantizes new tokens into the cache.
        ///
        /// # Safety
        /// `sage_spec::cache::AppendParams`, `sage_spec::cache::append` and `sage_spec::cache::append_grid`.
        #[kernel(max_threads = 128, min_blocks = 8)]
        pub unsafe fn $append(p: sage_spec::cache::AppendParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::cache::append::append::<$head_dim, $int4>(&p) }
        }

        /// Attention of a few queries over the cache.
        ///
        /// # Safety
        /// `sage_spec::decode::DecodeParams` and `sage_spec::decode::cta`.
        #[kernel(max_threads = 128, min_blocks = 3)]
        pub unsafe fn $decode(p: sage_spec::decode::DecodeParams) {
            // SAFETY: forwarded contract.
            unsafe { crate::cache::decode::decode::<$head_dim, $int4>(&p) }
        }
    )* };
}

#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
cache! {
    64, false => cache_append_int8_d64, decode_int8_d64;
    128, false => cache_append_int8_d128, decode_int8_d128;
    64, true => cache_append_int4_d64, decode_int4_d64;
    128, true => cache_append_int4_d128, decode_int4_d128;
}

/// Token mean of keys.
///
/// # Safety
/// `sage_spec::cache::MeanParams` and `sage_spec::cache::MEAN_CTA`.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[kernel(max_threads = 512, min_blocks = 2)]
pub unsafe fn cache_mean(p: sage_spec::cache::MeanParams) {
    // SAFETY: forwarded contract.
    unsafe { crate::cache::mean::mean(&p) }
}

/// Attention over two parts of the keys combined; only in the module that every device loads.
///
/// # Safety
/// `sage_spec::merge::MergeParams`, `sage_spec::merge::CTA` and `sage_spec::merge::grid`.
#[cfg(feature = "sm_80")]
#[kernel(max_threads = 256, min_blocks = 4)]
pub unsafe fn merge_parts(p: sage_spec::merge::MergeParams) {
    // SAFETY: forwarded contract.
    unsafe { crate::merge::merge(&p) }
}
