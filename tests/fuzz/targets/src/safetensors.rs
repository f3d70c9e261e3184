//! A file of weights is read whole or refused, without memory for what it only claims to have.

use sage_attn::models::Weights;

/// The target.
pub fn run(data: &[u8]) {
    let weights = match Weights::read("input".into(), data) {
        Ok(weights) => weights,
        Err(error) => {
            let text = error.to_string();
            return assert!(text.starts_with("input: ") && text.len() > 20, "{text:?}");
        }
    };
    assert_eq!((weights.path(), weights.fingerprint().is_empty()), ("input", false));
    let _ = (weights.metadata("layout"), weights.metadata(""));
    for name in ["q", "k", "v", "layer0.q", "weight", ""] {
        for shape in [&[1, 1, 2, 2][..], &[2, 2], &[4], &[0], &[]] {
            match weights.tensor(name, shape) {
                Ok(values) => assert_eq!(values.len(), shape.iter().product::<usize>()),
                Err(error) => assert!(error.to_string().starts_with("input: ")),
            }
        }
    }
}
