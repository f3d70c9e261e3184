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
        /// Forward attention of half a query block per CTA, with modifiers.
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
}

#[cfg(feature = "sm_89")]
general! {
    sm89, Int4D64, 32 => sm89_int4_fp8_fwd_general_d64;
    sm89, Int4D128, 64 => sm89_int4_fp8_fwd_general_d128;
    sm89, Int8D64, 64 => sm89_int8_fp8_fwd_general_d64;
    sm89, Int8D128, 128 => sm89_int8_fp8_fwd_general_d128;
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
    use sage_spec::sm90::{Exponential, Sm90AttentionParams};

    /// Symbol, padded head dimension, exponential, whether there is ΔS.
    macro_rules! hopper {
        ($($name:ident = $head_dim:literal, $exponential:ident, $delta_s:literal;)*) => { $(
            /// Forward attention, persistent: each CTA takes work items from a fixed schedule.
            ///
            /// # Safety
            /// `sage_spec::sm90::Sm90AttentionParams`.
            #[kernel(max_threads = 512, min_blocks = 1, parameter_align = 64)]
            pub unsafe fn $name(p: Sm90AttentionParams) {
                let maps = cuda_std::parameter_address!($name, p);
                // SAFETY: forwarded contract.
                unsafe {
                    crate::attention::sm90::kernel::kernel::<
                        crate::attention::sm90::Kernel<$head_dim, { Exponential::$exponential.exact_pairs() }, $delta_s>,
                    >(&p, maps)
                }
            }
        )* };
    }

    hopper! {
        sm90_int8_fp8_fwd_d64 = 64, Mixed, false;
        sm90_int8_fp8_fwd_d128 = 128, Mixed, false;
        sm90_int8_fp8_fwd_delta_s_d64 = 64, Mixed, true;
        sm90_int8_fp8_fwd_delta_s_d128 = 128, Mixed, true;
        sm90_int8_fp8_exp2_fwd_d64 = 64, Exact, false;
        sm90_int8_fp8_exp2_fwd_d128 = 128, Exact, false;
        sm90_int8_fp8_exp2_fwd_delta_s_d64 = 64, Exact, true;
        sm90_int8_fp8_exp2_fwd_delta_s_d128 = 128, Exact, true;
    }
}

/// One kernel of smoothing and quantization: threads of a CTA x CTAs that must fit on a multiprocessor.
macro_rules! step {
    ($name:ident($params:ident), $threads:literal x $ctas:literal => $($body:tt)*) => {
        /// One step of smoothing and quantization.
        ///
        /// # Safety
        /// The parameter struct of this kernel in `sage_spec::params`, its geometry in `sage_spec::launch`.
        #[kernel(max_threads = $threads, min_blocks = $ctas)]
        pub unsafe fn $name(p: $params) {
            // SAFETY: forwarded contract.
            unsafe { crate::quant::$($body)*(&p) }
        }
    };
}

/// The steps that every module has, for one input type and padded head dimension.
macro_rules! steps {
    ($($element:ident, $head_dim:literal, $threads:literal, $k_threads:literal => $k_mean:ident, $v_stats:ident, $delta_s:ident,
        $q_int4:ident, $q_int8:ident, $k_int4:ident, $k_int8:ident;)*) => { $(
        step!($k_mean(ReducePartialParams), $threads x 2 => stats::partial::<crate::quant::element::$element, $head_dim, false, 4>);
        step!($v_stats(ReducePartialParams), $threads x 2 => stats::partial::<crate::quant::element::$element, $head_dim, true, 2>);
        step!($delta_s(DeltaSParams), 256 x 2 => delta_s::delta_s::<crate::quant::element::$element, $head_dim>);
        step!($q_int4(QuantizeQParams), $threads x 2 => qk::quantize_q::<crate::quant::element::$element, true, $head_dim>);
        step!($q_int8(QuantizeQParams), $threads x 2 => qk::quantize_q::<crate::quant::element::$element, false, $head_dim>);
        step!($k_int4(QuantizeKParams), $k_threads x 4 => qk::quantize_k::<crate::quant::element::$element, true, $head_dim>);
        step!($k_int8(QuantizeKParams), $k_threads x 4 => qk::quantize_k::<crate::quant::element::$element, false, $head_dim>);
    )* };
}

steps! {
    F16, 64, 256, 128 => k_mean_partial_f16_d64, v_stats_partial_f16_d64, delta_s_f16_d64,
        quantize_q_int4_f16_d64, quantize_q_int8_f16_d64, quantize_k_int4_f16_d64, quantize_k_int8_f16_d64;
    F16, 128, 512, 256 => k_mean_partial_f16_d128, v_stats_partial_f16_d128, delta_s_f16_d128,
        quantize_q_int4_f16_d128, quantize_q_int8_f16_d128, quantize_k_int4_f16_d128, quantize_k_int8_f16_d128;
    Bf16, 64, 256, 128 => k_mean_partial_bf16_d64, v_stats_partial_bf16_d64, delta_s_bf16_d64,
        quantize_q_int4_bf16_d64, quantize_q_int8_bf16_d64, quantize_k_int4_bf16_d64, quantize_k_int8_bf16_d64;
    Bf16, 128, 512, 256 => k_mean_partial_bf16_d128, v_stats_partial_bf16_d128, delta_s_bf16_d128,
        quantize_q_int4_bf16_d128, quantize_q_int8_bf16_d128, quantize_k_int4_bf16_d128, quantize_k_int8_bf16_d128;
    F32, 64, 256, 128 => k_mean_partial_f32_d64, v_stats_partial_f32_d64, delta_s_f32_d64,
        quantize_q_int4_f32_d64, quantize_q_int8_f32_d64, quantize_k_int4_f32_d64, quantize_k_int8_f32_d64;
    F32, 128, 512, 256 => k_mean_partial_f32_d128, v_stats_partial_f32_d128, delta_s_f32_d128,
        quantize_q_int4_f32_d128, quantize_q_int8_f32_d128, quantize_k_int4_f32_d128, quantize_k_int8_f32_d128;
}

// Four chunk lanes: four threads a feature.
step!(k_mean_final_d64(KMeanFinalParams), 256 x 2 => stats::k_mean_final::<64>);
step!(k_mean_final_d128(KMeanFinalParams), 512 x 2 => stats::k_mean_final::<128>);
step!(v_stats_final_d64(VStatsFinalParams), 256 x 2 => stats::v_stats_final::<64>);
step!(v_stats_final_d128(VStatsFinalParams), 512 x 2 => stats::v_stats_final::<128>);

/// V to FP16.
#[cfg(feature = "sm_80")]
pub mod v_f16 {
    use super::*;

    step!(quantize_v_f16_f16_d64(QuantizeVParams), 256 x 2 => v::quantize_f16::<crate::quant::element::F16, 64>);
    step!(quantize_v_f16_f16_d128(QuantizeVParams), 512 x 2 => v::quantize_f16::<crate::quant::element::F16, 128>);
    step!(quantize_v_f16_bf16_d64(QuantizeVParams), 256 x 2 => v::quantize_f16::<crate::quant::element::Bf16, 64>);
    step!(quantize_v_f16_bf16_d128(QuantizeVParams), 512 x 2 => v::quantize_f16::<crate::quant::element::Bf16, 128>);
    step!(quantize_v_f16_f32_d64(QuantizeVParams), 256 x 2 => v::quantize_f16::<crate::quant::element::F32, 64>);
    step!(quantize_v_f16_f32_d128(QuantizeVParams), 512 x 2 => v::quantize_f16::<crate::quant::element::F32, 128>);
}

/// V to FP8.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
pub mod v_fp8 {
    use super::*;

    step!(quantize_v_fp8_f16_d64(QuantizeVParams), 256 x 2 => v::quantize_fp8::<crate::quant::element::F16, 64>);
    step!(quantize_v_fp8_f16_d128(QuantizeVParams), 512 x 2 => v::quantize_fp8::<crate::quant::element::F16, 128>);
    step!(quantize_v_fp8_bf16_d64(QuantizeVParams), 256 x 2 => v::quantize_fp8::<crate::quant::element::Bf16, 64>);
    step!(quantize_v_fp8_bf16_d128(QuantizeVParams), 512 x 2 => v::quantize_fp8::<crate::quant::element::Bf16, 128>);
    step!(quantize_v_fp8_f32_d64(QuantizeVParams), 256 x 2 => v::quantize_fp8::<crate::quant::element::F32, 64>);
    step!(quantize_v_fp8_f32_d128(QuantizeVParams), 512 x 2 => v::quantize_fp8::<crate::quant::element::F32, 128>);
}
