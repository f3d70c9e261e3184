//! Names of exported kernels. A *stem* `<arch>_<qk>_<pv>_fwd` names an attention kernel everywhere:
//! symbol, plan entry, test, bench case and document.

use crate::sm90::Exponential;
use crate::{CodeStorage, Precision, PvFormat};

/// An attention kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stem {
    /// Which PTX module holds it: `sm80` stems are in module `sm_80`.
    pub arch: Arch,
    /// Type of Q and K.
    pub qk: Precision,
    /// Type of P and V.
    pub pv: PvFormat,
    /// How P is computed.
    pub exponential: Exponential,
    /// `<arch>_<qk>_<pv>_fwd`, with `_exp2` before `_fwd` where the name must tell the exponential.
    pub name: &'static str,
    /// What its symbols begin with. Not the name for 4-bit codes on Hopper, whose tensor cores take them as
    /// 8-bit ones: both precisions run one kernel.
    pub symbol: &'static str,
}

impl Stem {
    /// A kernel with the plain exponential whose symbols are its name.
    const fn plain(arch: Arch, qk: Precision, pv: PvFormat, name: &'static str) -> Stem {
        Stem { arch, qk, pv, exponential: Exponential::Exact, name, symbol: name }
    }

    /// A kernel for Hopper.
    const fn hopper(qk: Precision, exponential: Exponential, name: &'static str) -> Stem {
        let symbol = match exponential {
            Exponential::Mixed => "sm90_int8_fp8_fwd",
            Exponential::Exact => "sm90_int8_fp8_exp2_fwd",
        };
        Stem { arch: Arch::Sm90a, qk, pv: PvFormat::Fp8, exponential, name, symbol }
    }

    /// What the symbols of its general kernels begin with. Those for Hopper take the exact exponential, whatever the
    /// plain one has.
    pub const fn general_symbol(&self) -> &'static str {
        match self.arch {
            Arch::Sm80 | Arch::Sm89 => self.symbol,
            Arch::Sm90a => "sm90_int8_fp8",
        }
    }

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
pub const STEMS: [Stem; 8] = [
    Stem::hopper(Precision::Int8, Exponential::Mixed, "sm90_int8_fp8_fwd"),
    Stem::hopper(Precision::Int4, Exponential::Mixed, "sm90_int4_fp8_fwd"),
    Stem::hopper(Precision::Int8, Exponential::Exact, "sm90_int8_fp8_exp2_fwd"),
    Stem::hopper(Precision::Int4, Exponential::Exact, "sm90_int4_fp8_exp2_fwd"),
    Stem::plain(Arch::Sm89, Precision::Int4, PvFormat::Fp8, "sm89_int4_fp8_fwd"),
    Stem::plain(Arch::Sm89, Precision::Int8, PvFormat::Fp8, "sm89_int8_fp8_fwd"),
    Stem::plain(Arch::Sm80, Precision::Int4, PvFormat::F16, "sm80_int4_f16_fwd"),
    Stem::plain(Arch::Sm80, Precision::Int8, PvFormat::F16, "sm80_int8_f16_fwd"),
];

/// Element types the quantizers read, as they appear in symbols: `quantize_fp8_bf16_d128`.
pub const INPUT_TYPES: [&str; 3] = ["f16", "bf16", "f32"];
