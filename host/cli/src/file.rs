//! Safetensors files: finding, checking and writing tensors.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use sage_attn::half::{bf16, f16};
use sage_attn::{DType, Element, Layout, TensorView};

use super::Failure;

/// Largest header that is read. Headers take about 100 bytes a tensor; a file that claims more is
/// taken for damaged before memory is spent on it.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A safetensors file in memory.
pub struct Archive {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
    /// Names of all tensors, sorted.
    names: Vec<String>,
}

/// A tensor of a file, in memory of its own, so that it is aligned.
pub struct Loaded {
    /// Name in the file.
    pub name: String,
    shape: Vec<usize>,
    elements: Elements,
}

enum Elements {
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
}

/// A q, a k and a v that belong together.
pub struct Triple {
    /// Queries.
    pub q: Loaded,
    /// Keys.
    pub k: Loaded,
    /// Values.
    pub v: Loaded,
}

impl Archive {
    /// Reads and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Archive, Failure> {
        let bad = |what: String| Failure::Input(format!("{}: {what}", path.display()));
        let mut file = File::open(path).map_err(|error| bad(format!("cannot open the file: {error}")))?;
        let mut length = [0u8; 8];
        file.read_exact(&mut length)
            .map_err(|_| bad("not a safetensors file: it is shorter than the 8 bytes of a header length".into()))?;
        let header = u64::from_le_bytes(length);
        if header > MAX_HEADER_BYTES {
            return Err(bad(format!(
                "not a safetensors file: its header claims {header} bytes, more than the {MAX_HEADER_BYTES} allowed"
            )));
        }
        let mut bytes = length.to_vec();
        file.read_to_end(&mut bytes).map_err(|error| bad(format!("cannot read the file: {error}")))?;
        let damaged = |error| bad(format!("damaged safetensors file of {} bytes: {error}", bytes.len()));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let mut names: Vec<String> = Metadata::tensors(&metadata).into_keys().collect();
        names.sort();
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(Archive { path: path.to_owned(), bytes, metadata, names })
    }

    /// A value of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Everything that comes before `q` in a tensor's name and also before a `k` and a `v`, sorted.
    pub fn prefixes(&self) -> Result<Vec<String>, Failure> {
        let has = |name: String| self.names.binary_search(&name).is_ok();
        let prefixes: Vec<String> = self
            .names
            .iter()
            .filter_map(|name| name.strip_suffix('q'))
            .filter(|prefix| has(format!("{prefix}k")) && has(format!("{prefix}v")))
            .map(str::to_owned)
            .collect();
        if prefixes.is_empty() {
            return Err(self.bad("no tensors named q, k and v, with or without a common prefix".into()));
        }
        Ok(prefixes)
    }

    /// The q, k and v behind `prefix`.
    pub fn triple(&self, prefix: &str) -> Result<Triple, Failure> {
        let load = |name: &str| self.load(format!("{prefix}{name}"));
        Ok(Triple { q: load("q")?, k: load("k")?, v: load("v")? })
    }

    fn load(&self, name: String) -> Result<Loaded, Failure> {
        let damaged = |error| self.bad(format!("damaged safetensors file: {error}"));
        let archive = SafeTensors::deserialize(&self.bytes).map_err(damaged)?;
        if self.names.binary_search(&name).is_err() {
            let found = if self.names.is_empty() { "none".into() } else { self.names.join(", ") };
            return Err(self.bad(format!("there is no tensor {name}; the file has {found}")));
        }
        let tensor = archive.tensor(&name).map_err(damaged)?;
        let data = tensor.data();
        let elements = match tensor.dtype() {
            Dtype::F16 => Elements::F16(decode(data, f16::from_le_bytes)),
            Dtype::BF16 => Elements::BF16(decode(data, bf16::from_le_bytes)),
            Dtype::F32 => Elements::F32(decode(data, f32::from_le_bytes)),
            other => {
                return Err(self.bad(format!("tensor {name} is {other:?}; it must be F16, BF16 or F32")));
            }
        };
        let shape = tensor.shape().to_vec();
        Ok(Loaded { name, shape, elements })
    }

    fn bad(&self, what: String) -> Failure {
        Failure::Input(format!("{}: {what}", self.path.display()))
    }
}

/// Little-endian elements.
fn decode<T, const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    // Chunks of exactly N bytes convert to arrays of N bytes.
    bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(element).collect()
}

impl Loaded {
    /// The tensor, its axes in the order of `layout`.
    pub fn view(&self, layout: Layout) -> Result<TensorView<'_>, Failure> {
        fn view<'a, T: Element>(loaded: &Loaded, elements: &'a [T], layout: Layout) -> Result<TensorView<'a>, Failure> {
            TensorView::new(elements, &loaded.shape, layout)
                .map_err(|error| Failure::Input(format!("tensor {} of shape {:?}: {error}", loaded.name, loaded.shape)))
        }
        match &self.elements {
            Elements::F16(elements) => view(self, elements, layout),
            Elements::BF16(elements) => view(self, elements, layout),
            Elements::F32(elements) => view(self, elements, layout),
        }
    }
}

/// A tensor to be written.
pub struct Written {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

/// Writes `tensors` to `path` so that a reader sees either the old file or the complete new one.
pub fn write(path: &Path, tensors: &[Written]) -> Result<(), Failure> {
    let failed = |what: &dyn std::fmt::Display| Failure::Other(format!("cannot write {}: {what}", path.display()));
    let views = tensors
        .iter()
        .map(|tensor| {
            let dtype = match tensor.dtype {
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                DType::F32 => Dtype::F32,
            };
            let view = safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes)?;
            Ok((tensor.name.as_str(), view))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| failed(&error))?;
    let bytes = safetensors::serialize(views, None).map_err(|error| failed(&error))?;
    replace(path, &bytes)
}

/// Writes `bytes` to `path` so that a reader sees either the old file or the complete new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    sage_attn::file::replace(path, bytes).map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => Failure::Input(format!("cannot write {}: {error}", path.display())),
        _ => Failure::Other(format!("cannot write {}: {error}", path.display())),
    })
}
