//! Picking the instruction set at run time.

use super::attend::attend;
use super::isa::{Isa, Task};
use super::operands::Operands;
use super::output::OutputMut;
use super::portable::Portable;

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
#[cfg(target_arch = "x86_64")]
use super::{
    avx2::Avx2,
    avx512::{self, Avx512},
};

/// An instruction set that the CPU has.
///
/// ```
/// use sage_attn::cpu::Path;
/// println!("{} of {:?}", Path::best().name(), Path::available().into_iter().map(Path::name).collect::<Vec<_>>());
/// assert_eq!(Path::available().last().map(|path| path.name()), Some("portable"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Path(Inner);

#[derive(Clone, Copy, Debug)]
enum Inner {
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512<{ avx512::AMX }>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<{ avx512::BF16 }>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<{ avx512::VNNI }>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(Neon<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<false>),
    Portable(Portable),
}

/// Calls `$call` with the instruction set of a path.
macro_rules! with {
    ($path:expr, |$isa:ident| $call:expr) => {
        match $path.0 {
            #[cfg(target_arch = "x86_64")]
            Inner::Amx($isa) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512Bf16($isa) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512($isa) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::AvxVnni($isa) => $call,
            #[cfg(target_arch = "x86_64")]
            Inner::Avx2($isa) => $call,
            #[cfg(target_arch = "aarch64")]
            Inner::NeonDot($isa) => $call,
            #[cfg(target_arch = "aarch64")]
            Inner::Neon($isa) => $call,
            Inner::Portable($isa) => $call,
        }
    };
}

impl Path {
    /// The instruction sets that this CPU has, best first; the portable one is always last.
    pub fn available() -> Vec<Path> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            paths.extend(Avx512::new().map(Inner::Amx));
            let bf16 = Avx512::new().map(Inner::Avx512Bf16);
            let f32 = Avx512::new().map(Inner::Avx512);
            paths.extend(if avx512::bf16_is_faster() { [bf16, f32] } else { [f32, bf16] }.into_iter().flatten());
            paths.extend(Avx2::new().map(Inner::AvxVnni));
            paths.extend(Avx2::new().map(Inner::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            paths.extend(Neon::new().map(Inner::NeonDot));
            paths.extend(Neon::new().map(Inner::Neon));
        }
        paths.push(Inner::Portable(Portable));
        paths.into_iter().map(Path).collect()
    }

    /// The best instruction set of this CPU.
    pub fn best() -> Path {
        Path::available()[0]
    }

    /// Name, such as `avx512-vnni-bf16`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        fn name<I: Isa>(_: I) -> &'static str {
            I::NAME
        }
        with!(self, |isa| name(isa))
    }

    /// Runs `task` compiled for this path.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        with!(self, |isa| isa.run(task))
    }

    /// [`attend`] on this path.
    pub(super) fn attend<O: Operands>(self, operands: &O, out: OutputMut, lse: &mut [f32]) {
        with!(self, |isa| attend(isa, operands, out, lse));
    }
}
