//! Weights from a safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::ModelError;

/// Largest header that is read. Headers take about 100 bytes a tensor; a file that claims more is
/// taken for damaged before memory is spent on it.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A safetensors file in memory.
///
/// ```
/// use sage_attn::models::Weights;
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/rustlm.safetensors");
/// let weights = Weights::open(path.as_ref())?;
/// let norm = weights.tensor("norm.weight", &[256])?;
/// assert_eq!(norm.len(), 256);
/// # Ok::<(), sage_attn::models::ModelError>(())
/// ```
pub struct Weights {
    path: String,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Weights {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// [`ModelError::File`] or [`ModelError::Format`].
    pub fn open(path: &Path) -> Result<Weights, ModelError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Weights::read(name, file),
            Err(error) => Err(ModelError::File { path: name, message: error.to_string() }),
        }
    }

    /// Reads and checks a file that is called `name` in messages.
    ///
    /// # Errors
    ///
    /// As [`Weights::open`].
    pub fn read(name: String, mut file: impl Read) -> Result<Weights, ModelError> {
        let format = |message: String| ModelError::Format { path: name.clone(), message };
        let mut length = [0u8; 8];
        file.read_exact(&mut length).map_err(|_| format("it is shorter than the 8 bytes of a header length".into()))?;
        let header = u64::from_le_bytes(length);
        if header > MAX_HEADER_BYTES {
            return Err(format(format!("its header claims {header} bytes, more than the {MAX_HEADER_BYTES} allowed")));
        }
        let mut bytes = length.to_vec();
        file.read_to_end(&mut bytes)
            .map_err(|error| ModelError::File { path: name.clone(), message: error.to_string() })?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| format(error.to_string()))?;
        SafeTensors::deserialize(&bytes).map_err(|error| format(error.to_string()))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(Weights { path: name, bytes, metadata })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A name for the file's contents, [`super::fingerprint`].
    pub fn fingerprint(&self) -> String {
        super::fingerprint(&self.bytes)
    }

    /// A value of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The tensor called `name`, of exactly this shape, row-major and widened to f32.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Shape`], [`ModelError::DType`] or
    /// [`ModelError::NotFinite`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let (path, named) = (self.path.clone(), name.to_owned());
        let archive = SafeTensors::deserialize(&self.bytes)
            .map_err(|error| ModelError::Format { path: path.clone(), message: error.to_string() })?;
        let Ok(tensor) = archive.tensor(name) else {
            return Err(ModelError::Missing { path, name: named });
        };
        if tensor.shape() != shape {
            let (shape, expected) = (tensor.shape().to_vec(), shape.to_vec());
            return Err(ModelError::Shape { path, name: named, shape, expected });
        }
        let data = tensor.data();
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F16 => decode(data, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => decode(data, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F32 => decode(data, f32::from_le_bytes),
            other => return Err(ModelError::DType { path, name: named, dtype: format!("{other:?}") }),
        };
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(ModelError::NotFinite { path, name: named }),
        }
    }
}

/// Little-endian elements as f32.
fn decode<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    // Chunks of exactly N bytes convert to arrays of N bytes.
    bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(element).collect()
}
