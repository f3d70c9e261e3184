//! Arguments of `#[kernel(..)]`.

use std::fmt::Write;

use proc_macro::{Span, TokenStream, TokenTree};

use crate::{Error, is_punct};

/// Launch bounds of one kernel; `None` where the author said nothing.
#[derive(Default)]
pub(crate) struct LaunchBounds {
    max_threads: Option<u32>,
    min_blocks: Option<u32>,
    max_registers: Option<u32>,
    parameter_align: Option<u32>,
}

impl LaunchBounds {
    /// Reads `name = integer, ..` and checks that the combination means something to ptxas.
    pub(crate) fn parse(args: TokenStream) -> Result<Self, Error> {
        let mut bounds = LaunchBounds::default();
        let mut tokens = args.into_iter();
        while let Some(token) = tokens.next() {
            let TokenTree::Ident(name) = &token else {
                return Err(Error::new(token.span(), EXPECTED));
            };
            match tokens.next() {
                Some(token) if is_punct(&token, '=') => {}
                _ => return Err(Error::new(name.span(), EXPECTED)),
            }
            let (value, span) = integer(tokens.next(), name.span())?;
            let slot = match name.to_string().as_str() {
                "max_threads" => &mut bounds.max_threads,
                "min_blocks" => &mut bounds.min_blocks,
                "max_registers" => &mut bounds.max_registers,
                "parameter_align" => &mut bounds.parameter_align,
                _ => return Err(Error::new(name.span(), EXPECTED)),
            };
            if slot.replace(value).is_some() {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
            if value == 0 {
                return Err(Error::new(span, format!("`{name}` must be at least 1")));
            }
            match tokens.next() {
                None => break,
                Some(token) if is_punct(&token, ',') => {}
                Some(token) => return Err(Error::new(token.span(), EXPECTED)),
            }
        }
        bounds.check()?;
        Ok(bounds)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |message: &str| Err(Error::new(Span::call_site(), message));
        if self.max_threads.is_some_and(|threads| threads > 1024) {
            return wrong("`max_threads` is at most 1024, the largest block of any GPU");
        }
        if self.min_blocks.is_some() && self.max_threads.is_none() {
            return wrong("`min_blocks` needs `max_threads`: registers are divided among the threads of those blocks");
        }
        if self.parameter_align.is_some_and(|align| !align.is_power_of_two() || align > 128) {
            return wrong("`parameter_align` is a power of two, at most 128");
        }
        if self.min_blocks.is_some() && self.max_registers.is_some() {
            return wrong("`min_blocks` and `max_registers` both limit registers: give one of them");
        }
        Ok(())
    }

    /// The statement that carries the bounds to `cuda_builder` as a comment in the PTX of the entry.
    /// rustc has no attribute for them, and a comment costs no instruction.
    pub(crate) fn marker(&self) -> Option<String> {
        let mut text = String::new();
        let all = [
            ("max_threads", self.max_threads),
            ("min_blocks", self.min_blocks),
            ("max_registers", self.max_registers),
            ("parameter_align", self.parameter_align),
        ];
        for (name, value) in all {
            if let Some(value) = value {
                write!(text, " {name}={value}").expect("writing to a String");
            }
        }
        (!text.is_empty()).then(|| {
            format!(
                "unsafe {{ ::core::arch::asm!(\"// launch_bounds{text}\", options(nomem, nostack, preserves_flags)); }}"
            )
        })
    }
}

const EXPECTED: &str = "#[kernel] takes `max_threads = N`, `min_blocks = N`, `max_registers = N` and `parameter_align = N`, separated by commas";

fn integer(token: Option<TokenTree>, name_span: Span) -> Result<(u32, Span), Error> {
    let Some(token) = token else {
        return Err(Error::new(name_span, EXPECTED));
    };
    let digits = token.to_string().replace('_', "");
    match digits.parse() {
        Ok(value) => Ok((value, token.span())),
        Err(_) => Err(Error::new(token.span(), "launch bounds are plain integer literals")),
    }
}
