//! Exported symbols: a table, no logic. Names follow `sage_spec::symbol`.

use cuda_std::prelude::*;
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
