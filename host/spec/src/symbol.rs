//! Names of exported kernels. A *stem* `<arch>_<qk>_<pv>_fwd` names an attention kernel everywhere:
//! symbol, plan entry, test, bench case and document.

use crate::{CodeStorage, Precision, PvFormat};

/// An attention kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stem {
    /// `"sm80"` or `"sm89"`; also which PTX module holds it (`sm_80`, `sm_89`).
    pub arch: Arch,
    /// Type of Q and K.
    pub qk: Precision,
    /// Type of P and V.
    pub pv: PvFormat,
    /// `<arch>_<qk>_<pv>_fwd`.
    pub name: &'static str,
}

impl Stem {
    /// How the kernel reads the codes of Q and K.
    pub const fn storage(&self) -> CodeStorage {
        match self.arch {
            Arch::Sm80 | Arch::Sm89 => self.qk.storage(),
            Arch::Sm90a => CodeStorage::Byte,
        }
    }
}

/// A PTX module: what its kernels may use and where it loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Compute capability 8.0 and later.
    Sm80,
    /// Compute capability 8.9 and later.
    Sm89,
    /// Compute capability 9.0 exactly.
    Sm90a,
}

impl Arch {
    /// All modules.
    pub const ALL: [Arch; 3] = [Arch::Sm80, Arch::Sm89, Arch::Sm90a];

    /// PTX target name.
    pub const fn target(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// Whether a device of compute capability `major.minor` loads the module: exactly for `a`
    /// targets, as a minimum for the others.
    pub const fn loads_on(self, major: u32, minor: u32) -> bool {
        match self {
            Arch::Sm80 => major >= 8,
            Arch::Sm89 => major > 8 || major == 8 && minor >= 9,
            Arch::Sm90a => major == 9 && minor == 0,
        }
    }
}

/// Every attention kernel there is.
pub const STEMS: [Stem; 4] = [
    Stem { arch: Arch::Sm89, qk: Precision::Int4, pv: PvFormat::Fp8, name: "sm89_int4_fp8_fwd" },
    Stem { arch: Arch::Sm89, qk: Precision::Int8, pv: PvFormat::Fp8, name: "sm89_int8_fp8_fwd" },
    Stem { arch: Arch::Sm80, qk: Precision::Int4, pv: PvFormat::F16, name: "sm80_int4_f16_fwd" },
    Stem { arch: Arch::Sm80, qk: Precision::Int8, pv: PvFormat::F16, name: "sm80_int8_f16_fwd" },
];

/// Element types the quantizers read, as they appear in symbols: `quantize_fp8_bf16_d128`.
pub const INPUT_TYPES: [&str; 3] = ["f16", "bf16", "f32"];
