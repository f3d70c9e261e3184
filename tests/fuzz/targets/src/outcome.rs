//! What became of an input.

use sage_attn::Error;

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was planned, for at least one device.
    Planned,
    /// It is good, and no device runs it.
    Good(Error),
    /// It is refused.
    Refused(Error),
}

impl Outcome {
    /// The error's enum and variant, such as `Invalid::ZeroStride`; `Planned` if there was none.
    pub fn name(&self) -> String {
        match self {
            Outcome::Planned => "Planned".into(),
            Outcome::Good(error) | Outcome::Refused(error) => {
                let text = format!("{error:?}");
                let end = |text: &str| text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
                let (outer, rest) = text.split_at(end(&text));
                let inner = rest.trim_start_matches('(');
                format!("{outer}::{}", &inner[..end(inner)])
            }
        }
    }
}

/// Fails unless the message of `error` is one line that says something.
pub fn check_message(error: &Error) {
    let text = error.to_string();
    assert!(text.len() > 20 && !text.contains('\n'), "{text:?}");
}
