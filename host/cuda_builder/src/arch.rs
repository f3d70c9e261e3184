//! GPU architectures: rust-cuda's [`NvvmArch`], with what rustc's backend needs to know of each.

use std::fmt;
use std::str::FromStr;

/// PTX ISA version as ten times its number: 84 is PTX 8.4. Selected by a target feature (`ptx84`).
///
/// ```
/// use cuda_builder::PtxIsa;
/// assert_eq!(PtxIsa(84).to_string(), "8.4");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PtxIsa(pub u32);

impl fmt::Display for PtxIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

/// Writes the enum and its tables from one row per architecture: variant, capability, suffix, and
/// the lowest PTX ISA in which all of its instructions assemble.
macro_rules! architectures {
    ($($variant:ident $capability:literal $suffix:literal $ptx:literal;)*) => {
        /// A virtual architecture, under the names of rust-cuda.
        ///
        /// Code for an `a` target loads on that compute capability only, for an `f` target on later
        /// devices of the same family, for any other on every later device.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum NvvmArch {
            $(#[doc = concat!("`sm_", $capability, $suffix, "`")] $variant,)*
        }

        impl NvvmArch {
            const ALL: &[NvvmArch] = &[$(NvvmArch::$variant),*];

            /// Capability, suffix and lowest PTX ISA.
            const fn row(self) -> (u32, &'static str, u32) {
                match self {
                    $(NvvmArch::$variant => ($capability, $suffix, $ptx),)*
                }
            }

            /// Name as a CUDA feature, for example `compute_90a`.
            pub const fn target_feature(&self) -> &'static str {
                match self {
                    $(NvvmArch::$variant => concat!("compute_", $capability, $suffix),)*
                }
            }

            /// Name as a PTX `.target` and as rustc's `target-cpu`, for example `sm_90a`.
            pub const fn target_name(&self) -> &'static str {
                match self {
                    $(NvvmArch::$variant => concat!("sm_", $capability, $suffix),)*
                }
            }
        }
    };
}

// Oldest first; within a capability: base, family, architecture. Capabilities below 7.0 have no PTX
// ISA here because build() refuses them: rustc 1.97 drops those targets. 8.9 would assemble with
// PTX 7.8 but has its FP8 tensor-core instructions since 8.4 only, 8.0 with 7.0 but has cache policies since 7.4.
architectures! {
    Compute35 35 "" 0;
    Compute37 37 "" 0;
    Compute50 50 "" 0;
    Compute52 52 "" 0;
    Compute53 53 "" 0;
    Compute60 60 "" 0;
    Compute61 61 "" 0;
    Compute62 62 "" 0;
    Compute70 70 "" 70;
    Compute72 72 "" 70;
    Compute75 75 "" 70;
    Compute80 80 "" 74;
    Compute86 86 "" 71;
    Compute87 87 "" 74;
    Compute88 88 "" 90;
    Compute89 89 "" 84;
    Compute90 90 "" 78;
    Compute90a 90 "a" 80;
    Compute100 100 "" 86;
    Compute100f 100 "f" 88;
    Compute100a 100 "a" 86;
    Compute101 101 "" 86;
    Compute101f 101 "f" 88;
    Compute101a 101 "a" 86;
    Compute103 103 "" 88;
    Compute103f 103 "f" 88;
    Compute103a 103 "a" 88;
    Compute110 110 "" 90;
    Compute110f 110 "f" 90;
    Compute110a 110 "a" 90;
    Compute120 120 "" 87;
    Compute120f 120 "f" 88;
    Compute120a 120 "a" 87;
    Compute121 121 "" 88;
    Compute121f 121 "f" 88;
    Compute121a 121 "a" 88;
}

impl Default for NvvmArch {
    /// Compute capability 8.0, the first with asynchronous copies and the tensor-core shapes that
    /// attention uses.
    fn default() -> Self {
        NvvmArch::Compute80
    }
}

impl NvvmArch {
    /// Lowest capability that rustc's backend supports.
    pub const MIN_CAPABILITY: u32 = 70;

    /// All architectures, oldest first.
    pub fn iter() -> impl Iterator<Item = NvvmArch> {
        Self::ALL.iter().copied()
    }

    /// Compute capability as ten times its number, for example 90 for `Compute90a`.
    pub const fn capability_value(&self) -> u32 {
        self.row().0
    }

    /// Major compute capability, 9 for `Compute90a`.
    pub const fn major_version(&self) -> u32 {
        self.capability_value() / 10
    }

    /// Minor compute capability, 9 for `Compute89`.
    pub const fn minor_version(&self) -> u32 {
        self.capability_value() % 10
    }

    /// The lowest PTX ISA that assembles everything this architecture has: the lower, the older the
    /// driver that loads the module. `None` where the architecture is not supported any more.
    pub const fn ptx_isa(&self) -> Option<PtxIsa> {
        match self.row().2 {
            0 => None,
            version => Some(PtxIsa(version)),
        }
    }

    /// Whether this is a base variant, without suffix.
    pub fn is_base_variant(&self) -> bool {
        self.row().1.is_empty()
    }

    /// Whether this is family-specific (`f`).
    pub fn is_family_variant(&self) -> bool {
        self.row().1 == "f"
    }

    /// Whether this is architecture-specific (`a`).
    pub fn is_architecture_variant(&self) -> bool {
        self.row().1 == "a"
    }

    /// The variant of the same capability without suffix.
    pub fn base_architecture(&self) -> NvvmArch {
        Self::iter()
            .find(|arch| arch.is_base_variant() && arch.capability_value() == self.capability_value())
            .expect("every capability of the table has a row without suffix")
    }

    /// All variants of the same capability, this one included.
    pub fn get_variants(&self) -> Vec<NvvmArch> {
        Self::variants_for_capability(self.capability_value())
    }

    /// All variants of a capability; empty if there is none.
    pub fn variants_for_capability(capability: u32) -> Vec<NvvmArch> {
        Self::iter().filter(|arch| arch.capability_value() == capability).collect()
    }

    /// The architectures whose features code for this one may use: every base variant up to it; for
    /// `f` and `a` variants also the families of the same major version up to it; and itself.
    pub fn all_target_features(&self) -> Vec<NvvmArch> {
        let has = |arch: &NvvmArch| {
            let not_newer = arch.capability_value() <= self.capability_value();
            let same_major = arch.major_version() == self.major_version();
            arch == self
                || arch.is_base_variant() && not_newer
                || !self.is_base_variant() && arch.is_family_variant() && same_major && not_newer
        };
        Self::iter().filter(has).collect()
    }

    /// Every base variant up to this capability, oldest first.
    pub fn iter_up_to(&self) -> impl Iterator<Item = NvvmArch> {
        let capability = self.capability_value();
        Self::iter().filter(|arch| arch.is_base_variant()).take_while(move |arch| arch.capability_value() <= capability)
    }
}

impl fmt::Display for NvvmArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target_feature())
    }
}

/// The text names no architecture.
///
/// ```
/// use cuda_builder::NvvmArch;
/// assert_eq!("compute_90a".parse(), Ok(NvvmArch::Compute90a));
/// assert!("compute_12".parse::<NvvmArch>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no architecture; write for example `compute_90a` or `sm_90a`")]
pub struct UnknownArch(String);

impl FromStr for NvvmArch {
    type Err = UnknownArch;

    /// Reads `compute_90a` and `sm_90a`.
    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        Self::iter()
            .find(|arch| arch.target_feature() == text || arch.target_name() == text)
            .ok_or_else(|| UnknownArch(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::NvvmArch::*;
    use super::*;

    #[test]
    fn names_round_trip() {
        for arch in NvvmArch::iter() {
            assert_eq!(arch.target_feature().parse(), Ok(arch));
            assert_eq!(arch.target_name().parse(), Ok(arch));
            let (capability, suffix, _) = arch.row();
            assert_eq!(format!("{arch:?}"), format!("Compute{capability}{suffix}"));
        }
        assert!("sm_90b".parse::<NvvmArch>().is_err());
    }

    #[test]
    fn hopper_is_described() {
        assert_eq!(Compute90a.capability_value(), 90);
        assert_eq!((Compute90a.major_version(), Compute90a.minor_version()), (9, 0));
        assert_eq!(Compute90a.target_name(), "sm_90a");
        assert_eq!(Compute90a.base_architecture(), Compute90);
        assert_eq!(Compute90a.get_variants(), [Compute90, Compute90a]);
        assert!(Compute90a.is_architecture_variant() && !Compute90a.is_family_variant());
    }

    #[test]
    fn features_follow_the_variant() {
        assert!(!Compute120.all_target_features().contains(&Compute120f));
        assert!(Compute120a.all_target_features().contains(&Compute120f));
        assert!(!Compute120f.all_target_features().contains(&Compute120a));
        assert!(!Compute120a.all_target_features().contains(&Compute100f));
        assert!(!Compute120.all_target_features().contains(&Compute90a));
        assert_eq!(Compute80.iter_up_to().last(), Some(Compute80));
    }

    #[test]
    fn every_supported_arch_has_a_ptx_isa() {
        for arch in NvvmArch::iter() {
            assert_eq!(arch.ptx_isa().is_some(), arch.capability_value() >= NvvmArch::MIN_CAPABILITY);
        }
        assert_eq!(Compute89.ptx_isa().unwrap().to_string(), "8.4");
    }
}
