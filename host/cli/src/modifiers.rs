//! Options for what attention does beside scaling scores.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use sage_attn::reference::Modifiers;
use sage_attn::{Alignment, Attention, Window, alibi_slopes};

/// Windows, soft-cap and ALiBi.
#[derive(Args, Clone)]
pub struct ModifierOptions {
    /// Where rows stand among the keys: the last row at the last key, or the first at the first
    #[arg(long, value_enum, default_value = "bottom-right")]
    causal_align: AlignmentName,
    /// Keys that a row sees before and after its position, as in 1024,0; -1 is no bound
    #[arg(long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = parse_window)]
    window: Option<Window>,
    /// Cap scores smoothly at this magnitude
    #[arg(long)]
    softcap: Option<f32>,
    /// Lower scores by distance: with the usual slopes, or with these, one for each query head
    #[arg(long, value_name = "SLOPES", num_args = 0..=1, require_equals = true, default_missing_value = "usual")]
    alibi: Option<Slopes>,
}

impl ModifierOptions {
    /// `attention` with what needs no data.
    pub fn apply(&self, attention: Attention) -> Attention {
        let attention = attention.alignment(self.causal_align.into()).window(self.window.unwrap_or_default());
        match self.softcap {
            Some(softcap) => attention.softcap(softcap),
            None => attention,
        }
    }

    /// Slopes for `heads` query heads.
    pub fn slopes(&self, heads: usize) -> Option<Vec<f32>> {
        self.alibi.as_ref().map(|slopes| match slopes {
            Slopes::Usual => alibi_slopes(heads),
            Slopes::Given(slopes) => slopes.clone(),
        })
    }

    /// The same for the reference.
    pub fn reference<'a>(&self, slopes: Option<&'a [f32]>) -> Modifiers<'a> {
        Modifiers {
            alignment: self.causal_align.into(),
            window: self.window.unwrap_or_default(),
            softcap: self.softcap,
            alibi: slopes,
            ..Modifiers::default()
        }
    }
}

/// Value of `--causal-align`.
#[derive(Clone, Copy, ValueEnum)]
enum AlignmentName {
    /// The last row stands at the last key
    BottomRight,
    /// The first row stands at the first key
    TopLeft,
}

impl From<AlignmentName> for Alignment {
    fn from(name: AlignmentName) -> Alignment {
        match name {
            AlignmentName::BottomRight => Alignment::BottomRight,
            AlignmentName::TopLeft => Alignment::TopLeft,
        }
    }
}

/// Value of `--alibi`.
#[derive(Clone)]
enum Slopes {
    /// Those of [`alibi_slopes`].
    Usual,
    /// One for each query head.
    Given(Vec<f32>),
}

impl FromStr for Slopes {
    type Err = String;

    fn from_str(text: &str) -> Result<Slopes, String> {
        if text == "usual" {
            return Ok(Slopes::Usual);
        }
        let slope =
            |text: &str| text.parse().map_err(|_| format!("\"{text}\" is not a number; use for instance 0.5,0.25"));
        text.split(',').map(slope).collect::<Result<_, _>>().map(Slopes::Given)
    }
}

fn parse_window(text: &str) -> Result<Window, String> {
    let bound = |text: &str| match text {
        "-1" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("\"{text}\" is not a number of keys, or -1 for no bound")),
    };
    match text.split_once(',') {
        Some((left, right)) => Ok(Window { left: bound(left)?, right: bound(right)? }),
        None => Err("two numbers are needed, as in 1024,0".into()),
    }
}
