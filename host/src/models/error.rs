//! What can be wrong with a model's files or its use.

use thiserror::Error;

use crate::error::{Error as AttentionError, Invalid};

/// A model that cannot be loaded or run.
///
/// Example: [`Weights`](crate::models::Weights).
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{path}: cannot read the file: {message}")]
    File {
        /// The file.
        path: String,
        /// What the operating system says.
        message: String,
    },
    /// The weights are not a safetensors file.
    #[error("{path}: not a safetensors file: {message}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The weights lack a tensor.
    #[error("{path}: there is no tensor {name}, which the model needs")]
    Missing {
        /// The file.
        path: String,
        /// Tensor needed.
        name: String,
    },
    /// A tensor has the wrong shape.
    #[error("{path}: tensor {name} has shape {shape:?}; it must be {expected:?}")]
    Shape {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
        /// Shape found.
        shape: Vec<usize>,
        /// Shape needed.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not read.
    #[error("{path}: tensor {name} has elements of type {dtype}; they must be F16, BF16 or F32")]
    DType {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
        /// Type found.
        dtype: String,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor {name} has a weight that is not finite")]
    NotFinite {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
    },
    /// The file's metadata does not describe the model it must.
    #[error("{path}: metadata \"{key}\" is {found}; it must be {expected}")]
    Metadata {
        /// The file.
        path: String,
        /// Key.
        key: &'static str,
        /// Value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// More tokens than the model's context holds.
    #[error("{tokens} tokens do not fit the model's context of {context}")]
    Context {
        /// Tokens there would be.
        tokens: usize,
        /// Tokens the model can see.
        context: usize,
    },
    /// Nothing to evaluate or to continue.
    #[error("{what} has {bytes} bytes; it must have at least {needed}")]
    TooShort {
        /// What is too short.
        what: &'static str,
        /// Bytes it has.
        bytes: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// What computes attention returned a tensor of another shape than that of the queries.
    #[error("attention returned a tensor of shape {shape:?}; it must be {expected:?}, that of q")]
    Attended {
        /// Shape returned.
        shape: [usize; 4],
        /// Shape of q.
        expected: [usize; 4],
    },
    /// Not one image for each class.
    #[error("{values} values for {classes} classes; each needs an image of {each} values, and there must be one")]
    Images {
        /// Values there are.
        values: usize,
        /// Classes there are.
        classes: usize,
        /// Values of an image.
        each: usize,
    },
    /// A class that the model does not have.
    #[error("there is no class {class}; the model has classes 0 to {}", .classes.saturating_sub(1))]
    Class {
        /// The class.
        class: usize,
        /// Classes the model has.
        classes: usize,
    },
    /// Too few images for a distribution.
    #[error("{images} images make no distribution; there must be at least {needed}")]
    TooFewImages {
        /// Images there are.
        images: usize,
        /// Images needed.
        needed: usize,
    },
    /// Options of sampling that lead nowhere.
    #[error("{steps} steps with guidance {guidance}: there must be at least one step, and guidance must be finite")]
    Sampling {
        /// Steps asked for.
        steps: usize,
        /// Guidance asked for.
        guidance: f32,
    },
    /// An attention call failed.
    #[error(transparent)]
    Attention(#[from] AttentionError),
}

impl From<Invalid> for ModelError {
    fn from(error: Invalid) -> ModelError {
        ModelError::Attention(error.into())
    }
}
