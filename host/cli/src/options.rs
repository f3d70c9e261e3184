//! Options that commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sage_attn::{Device, Layout, Precision, ScaleGranularity, Smoothing};

use super::file::Archive;
use super::{Failure, note};

/// Where the tensors are and what they mean.
#[derive(Args)]
pub struct Input {
    /// File with tensors q, k and v, perhaps behind prefixes such as `layer0.`
    pub file: PathBuf,
    /// Take the tensors <PREFIX>q, <PREFIX>k and <PREFIX>v; without it, all there are
    #[arg(long)]
    pub prefix: Option<String>,
    /// Take every prefix in the file, which is the default
    #[arg(long, value_enum, conflicts_with = "prefix")]
    pub layers: Option<Layers>,
    /// Order of the axes: batch, heads, tokens, features (hnd) or batch, tokens, heads, features (nhd)
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// Mask the future; without the option, as the file's metadata says
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub causal: Option<bool>,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = |name: &str| name.parse::<Device>().map_err(|e| e.to_string()))]
    pub device: Device,
}

impl Input {
    /// The prefixes to work on.
    pub fn prefixes(&self, archive: &Archive) -> Result<Vec<String>, Failure> {
        match &self.prefix {
            Some(prefix) => Ok(vec![prefix.clone()]),
            None => archive.prefixes(),
        }
    }

    /// Order of the axes: the option, or the file's metadata, or heads before tokens.
    pub fn layout(&self, archive: &Archive) -> Layout {
        let stated = archive.metadata("layout").map(str::to_ascii_lowercase);
        match (self.layout, stated.as_deref()) {
            (Some(LayoutName::Nhd), _) => Layout::Nhd,
            (None, Some("nhd")) => {
                note("axes are batch, tokens, heads, features, as the file's metadata says");
                Layout::Nhd
            }
            _ => Layout::Hnd,
        }
    }

    /// Whether the causal mask applies: the option, or the file's metadata, or no.
    pub fn causal(&self, archive: &Archive) -> bool {
        self.causal.unwrap_or_else(|| {
            let causal = archive.metadata("causal") == Some("true");
            if causal {
                note("the causal mask is on, as the file's metadata says; --causal=false turns it off");
            }
            causal
        })
    }
}

/// Value of `--layers`.
#[derive(Clone, Copy, ValueEnum)]
pub enum Layers {
    /// Every prefix.
    All,
}

/// Value of `--layout`.
#[derive(Clone, Copy, ValueEnum)]
pub enum LayoutName {
    /// Batch, heads, tokens, features.
    Hnd,
    /// Batch, tokens, heads, features.
    Nhd,
}

/// Value of `--precision`.
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionName {
    /// INT8
    Auto,
    /// Q and K in 4 bits
    Int4,
    /// Q and K in 8 bits
    Int8,
    /// f32, on the CPU only
    Exact,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Precision {
        match name {
            PrecisionName::Auto => Precision::Auto,
            PrecisionName::Int4 => Precision::Int4,
            PrecisionName::Int8 => Precision::Int8,
            PrecisionName::Exact => Precision::Exact,
        }
    }
}

/// Value of `--granularity`.
#[derive(Clone, Copy, ValueEnum)]
pub enum GranularityName {
    /// A scale per 128 queries and per 64 keys
    Block,
    /// A scale per 32 queries and per 64 keys
    Warp,
    /// A scale per 4 queries and per 16 keys
    Thread,
}

impl From<GranularityName> for ScaleGranularity {
    fn from(name: GranularityName) -> ScaleGranularity {
        match name {
            GranularityName::Block => ScaleGranularity::PerBlock,
            GranularityName::Warp => ScaleGranularity::PerWarp,
            GranularityName::Thread => ScaleGranularity::PerThread,
        }
    }
}

/// Reads `none` or some of `q`, `k` and `v` between commas.
pub fn parse_smoothing(text: &str) -> Result<Smoothing, String> {
    let mut smoothing = Smoothing::NONE;
    if text == "none" {
        return Ok(smoothing);
    }
    for name in text.split(',') {
        match name {
            "q" => smoothing.q = true,
            "k" => smoothing.k = true,
            "v" => smoothing.v = true,
            _ => {
                return Err(format!("\"{name}\" is not one of q, k and v; use for instance q,k or none"));
            }
        }
    }
    Ok(smoothing)
}
