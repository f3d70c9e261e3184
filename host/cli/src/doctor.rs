//! `doctor`: what there is, what would be used, and why.

use clap::Args;
use sage_attn::cpu::Path;
use sage_attn::device::{Gpu, MODULES, device_count, driver_version};
use sage_attn::error::Operand;
use sage_attn::plan::plan;
use sage_attn::problem::TensorSpec;
use sage_attn::{Attention, DType, Error, Layout};
use serde::Serialize;

use super::{Failure, print};

/// Options of `doctor`.
#[derive(Args)]
pub struct DoctorOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Findings {
    version: &'static str,
    /// CUDA version the driver supports, if there is one.
    driver: Option<String>,
    devices: Vec<Device>,
    kernels: Vec<Module>,
    /// SHA-256 of the source the kernels were built from.
    kernel_source_sha256: &'static str,
    cpu: Cpu,
    /// What [`sage_attn::Device::Auto`] would use.
    uses: String,
    /// Why that is not a GPU.
    reason: Option<String>,
}

#[derive(Serialize)]
struct Device {
    ordinal: usize,
    name: String,
    compute_capability: String,
    sm_count: u32,
    shared_memory_bytes: usize,
    memory_bytes: usize,
    /// The kernel for the default options, if one loads.
    kernel: Option<String>,
    /// Why none does.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Module {
    target: &'static str,
    sha256: &'static str,
    entries: usize,
}

#[derive(Serialize)]
struct Cpu {
    architecture: &'static str,
    threads: usize,
    features: Vec<&'static str>,
    /// Instruction set that attention on the CPU uses, and the others it could.
    path: &'static str,
    paths: Vec<&'static str>,
}

/// Runs the command.
pub fn doctor(options: &DoctorOptions) -> Result<(), Failure> {
    let findings = find();
    if options.json {
        let line =
            serde_json::to_string(&findings).map_err(|error| Failure::Other(format!("cannot write JSON: {error}")))?;
        return print(line);
    }
    show(&findings)
}

fn find() -> Findings {
    let mut devices = Vec::new();
    let mut reason: Option<String> = None;
    match device_count() {
        Ok(count) => {
            for ordinal in 0..count {
                match describe(ordinal) {
                    Ok(device) => devices.push(device),
                    Err(error) => reason = Some(format!("cuda:{ordinal}: {error}")),
                }
            }
        }
        Err(error) => reason = Some(error.to_string()),
    }
    // Auto means the first device, so the first device decides.
    let first = devices.first().filter(|device: &&Device| device.ordinal == 0);
    let uses = match first.and_then(|device| device.kernel.as_ref()) {
        Some(kernel) => format!("{kernel} on cuda:0"),
        None => "cpu_int8_fp8_fwd on cpu".into(),
    };
    let reason = reason.or_else(|| first.and_then(|device| device.problem.clone()));
    Findings {
        version: env!("CARGO_PKG_VERSION"),
        driver: driver_version().ok(),
        devices,
        kernels: MODULES
            .iter()
            .map(|module| Module {
                target: module.target,
                sha256: module.sha256,
                entries: module.ptx.matches(".visible .entry ").count(),
            })
            .collect(),
        kernel_source_sha256: MODULES.first().map_or("", |module| module.source_sha256),
        cpu: Cpu {
            architecture: std::env::consts::ARCH,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: cpu_features(),
            path: Path::best().name(),
            paths: Path::available().into_iter().map(Path::name).collect(),
        },
        uses,
        reason,
    }
}

fn describe(ordinal: usize) -> Result<Device, Error> {
    let gpu = Gpu::open(ordinal)?;
    let capability = *gpu.capability();
    let kernel = default_kernel(&gpu);
    Ok(Device {
        ordinal,
        name: gpu.name().to_owned(),
        compute_capability: format!("{}.{}", capability.major, capability.minor),
        sm_count: capability.sm_count,
        shared_memory_bytes: capability.smem_opt_in,
        memory_bytes: gpu.total_bytes(),
        problem: kernel.as_ref().err().map(Error::to_string),
        kernel: kernel.ok(),
    })
}

/// Plans a typical problem with the default options and loads its kernels.
fn default_kernel(gpu: &Gpu) -> Result<String, Error> {
    let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 1024, 128], Layout::Hnd)?;
    let plan = plan(&Attention::new().problem(spec, spec, spec, spec)?, gpu.capability())?;
    gpu.prepare(&plan)?;
    Ok(plan.stem().name.to_owned())
}

fn show(findings: &Findings) -> Result<(), Failure> {
    print(format_args!("sage-attn  {}", findings.version))?;
    match &findings.driver {
        Some(version) => print(format_args!("driver     supports CUDA {version}"))?,
        None => print("driver     none")?,
    }
    for device in &findings.devices {
        print(format_args!(
            "device     cuda:{} {}, compute capability {}, {} SMs, {} MiB, {} KiB of shared memory per CTA",
            device.ordinal,
            device.name,
            device.compute_capability,
            device.sm_count,
            device.memory_bytes >> 20,
            device.shared_memory_bytes >> 10,
        ))?;
        let problem = device.problem.as_deref().unwrap_or_default();
        match &device.kernel {
            Some(kernel) => print(format_args!("           loads {kernel}"))?,
            None => print(format_args!("           not usable: {problem}"))?,
        }
    }
    if findings.kernels.is_empty() {
        print("kernels    none in this build")?;
    }
    for module in &findings.kernels {
        print(format_args!(
            "kernels    {}: {} kernels, PTX {:.12} from source {:.12}",
            module.target, module.entries, module.sha256, findings.kernel_source_sha256
        ))?;
    }
    let cpu = &findings.cpu;
    print(format_args!("cpu        {}, {} threads, {}", cpu.architecture, cpu.threads, cpu.features.join(" ")))?;
    print(format_args!("           attention through {} (there are {})", cpu.path, cpu.paths.join(", ")))?;
    print(format_args!("uses       {}", findings.uses))?;
    match &findings.reason {
        Some(reason) => print(format_args!("why        {reason}")),
        None => Ok(()),
    }
}

/// Vector extensions that the CPU path profits from.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("avxvnni", std::arch::is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&str, bool); 0] = [];
    features.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect()
}
