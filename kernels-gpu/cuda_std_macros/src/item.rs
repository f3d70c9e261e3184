//! The one item shape the attributes work on: a function with a body.

use proc_macro::{Delimiter, Group, Ident, TokenStream, TokenTree};

use crate::{Error, ident_token, is_arrow, is_ident, is_punct};

/// A function cut into the parts the attributes rearrange.
pub(crate) struct Function {
    /// Outer attributes, doc comments included.
    pub(crate) attributes: TokenStream,
    /// Everything between the attributes and `fn`: visibility and qualifiers.
    qualifiers: Vec<TokenTree>,
    pub(crate) name: Ident,
    /// Everything between name and arguments.
    generics: Vec<TokenTree>,
    arguments: Group,
    /// Return type and where clause.
    tail: Vec<TokenTree>,
    pub(crate) body: Group,
}

impl Function {
    /// Cuts `input`; `attribute` is named in the error if it is not a function with a body.
    pub(crate) fn parse(input: TokenStream, attribute: &str) -> Result<Self, Error> {
        let not_a_function = |token: Option<&TokenTree>| {
            let span = token.map_or_else(proc_macro::Span::call_site, TokenTree::span);
            Error::new(span, format!("#[{attribute}] goes on a function with a body"))
        };
        let mut tokens = input.into_iter().peekable();

        let mut attributes = Vec::new();
        while let Some(hash) = tokens.next_if(|token| is_punct(token, '#')) {
            attributes.push(hash);
            attributes.extend(tokens.next());
        }

        let mut qualifiers = Vec::new();
        loop {
            match tokens.next() {
                Some(token) if is_ident(&token, "fn") => break,
                // `struct S { .. }` and the like never reach `fn` before a brace or the end.
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    return Err(not_a_function(qualifiers.first()));
                }
                Some(token) => qualifiers.push(token),
                None => return Err(not_a_function(qualifiers.first())),
            }
        }

        let name = match tokens.next() {
            Some(TokenTree::Ident(name)) => name,
            token => return Err(not_a_function(token.as_ref())),
        };
        let mut generics = Vec::new();
        let mut depth = 0_usize;
        let arguments = loop {
            match tokens.next() {
                // A parenthesis inside `<..>` belongs to a bound such as `F: Fn(u32)`.
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis && depth == 0 => {
                    break group;
                }
                Some(token) => {
                    let arrow_head = generics.last().is_some_and(|last| is_arrow(last, Some(&token)));
                    if is_punct(&token, '<') {
                        depth += 1;
                    } else if is_punct(&token, '>') && !arrow_head {
                        depth = depth.saturating_sub(1);
                    }
                    generics.push(token);
                }
                None => return Err(not_a_function(None)),
            }
        };
        let mut tail: Vec<TokenTree> = tokens.collect();
        let body = match tail.pop() {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => group,
            token => return Err(not_a_function(token.as_ref())),
        };
        Ok(Function { attributes: attributes.into_iter().collect(), qualifiers, name, generics, arguments, tail, body })
    }

    /// A kernel is `unsafe fn name(arguments)`, nothing more.
    pub(crate) fn require_kernel_signature(&self) -> Result<(), Error> {
        let has_unsafe = self.qualifiers.iter().any(|token| is_ident(token, "unsafe"));
        if !has_unsafe {
            return Err(Error::new(
                self.name.span(),
                "a kernel must be an `unsafe fn`: its launcher vouches for every pointer it is given",
            ));
        }
        for word in ["const", "async", "extern"] {
            if let Some(token) = self.qualifiers.iter().find(|token| is_ident(token, word)) {
                return Err(Error::new(token.span(), format!("a kernel cannot be `{word}`: #[kernel] sets its ABI")));
            }
        }
        if let Some(token) = self.generics.first() {
            return Err(Error::new(
                token.span(),
                "a kernel cannot be generic: its symbol has one type; call a generic function from it",
            ));
        }
        if let Some(first) = self.tail.first() {
            let message = if is_arrow(first, self.tail.get(1)) {
                "a kernel returns nothing: write results through a pointer argument"
            } else {
                "a kernel takes no where clause"
            };
            return Err(Error::new(first.span(), message));
        }
        let takes_self = self.arguments.stream().into_iter().find(|token| is_ident(token, "self"));
        match takes_self {
            Some(token) => Err(Error::new(token.span(), "a kernel is a free function: it takes no `self`")),
            None => Ok(()),
        }
    }

    /// `name(arguments)`.
    pub(crate) fn name_and_arguments(&self) -> [TokenTree; 2] {
        [ident_token(&self.name), TokenTree::Group(self.arguments.clone())]
    }

    /// Everything but the body, as it was written.
    pub(crate) fn whole_signature(&self) -> TokenStream {
        let mut tokens = self.attributes.clone();
        tokens.extend(self.qualifiers.iter().cloned());
        tokens.extend(crate::quote("fn"));
        tokens.extend([ident_token(&self.name)]);
        tokens.extend(self.generics.iter().cloned());
        tokens.extend([TokenTree::Group(self.arguments.clone())]);
        tokens.extend(self.tail.iter().cloned());
        tokens
    }
}
