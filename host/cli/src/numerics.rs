//! Whose arithmetic `accuracy` measures.

use std::str::FromStr;

use sage_attn::device::device_count;
use sage_attn::spec::Precision;
use sage_attn::spec::symbol::{Arch, STEMS, Stem};
use sage_attn::{Attention, Device};

use super::Failure;

/// Whose arithmetic to compute with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numerics {
    /// The CPU's own back end, which rounds P less than GPUs do.
    Cpu,
    /// The kernels that the planner chooses for a GPU.
    Planned,
    /// The kernels of one architecture.
    Family(Arch),
    /// One kernel.
    Kernel(Stem),
}

/// Values of `--kernel` that name a family.
const FAMILIES: [(&str, Arch); 3] = [("sm80", Arch::Sm80), ("sm89", Arch::Sm89), ("sm90", Arch::Sm90a)];

impl FromStr for Numerics {
    type Err = String;

    fn from_str(text: &str) -> Result<Numerics, String> {
        let family = FAMILIES.iter().find(|(name, _)| *name == text).map(|(_, arch)| Numerics::Family(*arch));
        let kernel = || STEMS.iter().find(|stem| stem.name == text).map(|stem| Numerics::Kernel(*stem));
        match text {
            "cpu" => Ok(Numerics::Cpu),
            _ => family.or_else(kernel).ok_or_else(|| {
                let kernels: Vec<&str> = STEMS.iter().map(|stem| stem.name).collect();
                format!("\"{text}\" is not a kernel; use cpu, sm80, sm89, sm90, or one of {}", kernels.join(", "))
            }),
        }
    }
}

impl Numerics {
    /// What is measured where nothing was asked for: what a GPU computes, with or without one. The choice of the
    /// planner if there is a GPU, the newest kernels if there is none.
    pub fn default_for(device: Device) -> Numerics {
        let has_gpu = match device {
            Device::Cpu => false,
            Device::Cuda(_) => true,
            Device::Auto => device_count().is_ok_and(|count| count > 0),
        };
        if has_gpu { Numerics::Planned } else { Numerics::Family(Arch::Sm90a) }
    }

    /// Where to compute, if `device` was asked for.
    ///
    /// # Errors
    ///
    /// If it contradicts.
    pub fn device(self, device: Device) -> Result<Device, Failure> {
        match (self, device) {
            (Numerics::Cpu, Device::Cuda(_)) => Err(Failure::Input(format!(
                "--kernel cpu is computed on the CPU; use --device cpu instead of {device}"
            ))),
            (Numerics::Cpu, _) => Ok(Device::Cpu),
            _ => Ok(device),
        }
    }

    /// The precisions there are.
    pub fn precisions(self) -> Vec<Precision> {
        match self {
            Numerics::Kernel(stem) => vec![stem.qk],
            _ => vec![Precision::Int4, Precision::Int8],
        }
    }

    /// `attention` with this arithmetic, Q and K in `precision`.
    pub fn apply(self, attention: Attention, precision: Precision) -> Attention {
        match self {
            Numerics::Cpu | Numerics::Planned => attention,
            Numerics::Kernel(stem) => attention.kernel(stem.name),
            // The first is the one that the planner prefers.
            Numerics::Family(arch) => match STEMS.iter().find(|stem| stem.arch == arch && stem.qk == precision) {
                Some(stem) => attention.kernel(stem.name),
                None => attention,
            },
        }
    }

    /// The arithmetic in words, if it was computed on `place`.
    pub fn describe(self, place: &str) -> String {
        let by = if place == "cpu" { ", by the reference" } else { "" };
        match self {
            Numerics::Cpu => "the CPU's own arithmetic".into(),
            Numerics::Planned => "the kernels chosen for the device".into(),
            Numerics::Kernel(stem) => format!("arithmetic of {}{by},", stem.name),
            Numerics::Family(arch) => {
                let name = FAMILIES.iter().find(|(_, family)| *family == arch).map_or("", |(name, _)| *name);
                format!("arithmetic of the {name} kernels{by},")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_and_family_is_a_name_and_the_error_lists_them() {
        for stem in STEMS {
            assert_eq!(stem.name.parse(), Ok(Numerics::Kernel(stem)));
        }
        for (name, arch) in FAMILIES {
            assert_eq!(name.parse(), Ok(Numerics::Family(arch)));
            assert!(STEMS.iter().any(|stem| stem.arch == arch && stem.name.starts_with(name)));
        }
        let error = "sm70".parse::<Numerics>().unwrap_err();
        assert!(error.contains("sm80_int8_f16_fwd") && error.contains("cpu"), "{error}");
    }

    #[test]
    fn the_arithmetic_of_the_cpu_needs_the_cpu() {
        assert!(Numerics::Cpu.device(Device::Cuda(1)).is_err());
        assert_eq!(Numerics::Cpu.device(Device::Auto).ok(), Some(Device::Cpu));
        assert_eq!(Numerics::default_for(Device::Cpu), Numerics::Family(Arch::Sm90a));
        assert_eq!(Numerics::default_for(Device::Cuda(0)), Numerics::Planned);
    }
}
