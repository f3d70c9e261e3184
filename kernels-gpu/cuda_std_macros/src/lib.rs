//! The attributes of `cuda_std`, under rust-cuda's names: [`macro@kernel`], [`macro@gpu_only`],
//! [`macro@externally_visible`] and [`macro@address_space`].
//!
//! Kernels need a parser for one item shape only (`unsafe fn name(..) { .. }`), so tokens are read
//! directly and no parsing crate is pulled into the device build.

mod bounds;
mod item;

use proc_macro::{Delimiter, Group, Ident, Literal, Punct, Spacing, Span, TokenStream, TokenTree};

use bounds::LaunchBounds;
use item::Function;

/// A message and the token it is about; turned into `compile_error!`.
struct Error {
    span: Span,
    message: String,
}

impl Error {
    fn new(span: Span, message: impl Into<String>) -> Self {
        Error { span, message: message.into() }
    }

    fn into_compile_error(self) -> TokenStream {
        let message = TokenTree::Literal(Literal::string(&self.message));
        let mut tokens = quote("::core::compile_error!");
        tokens.extend([TokenTree::Group(Group::new(Delimiter::Brace, message.into()))]);
        tokens.into_iter().map(|token| respan(token, self.span)).collect()
    }
}

/// Makes a function the entry point of a kernel.
///
/// On `nvptx64` the function becomes `#[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn`; on
/// any other target a plain `pub unsafe fn`, so kernels also run under the host executor. It must
/// be an `unsafe fn` without generics and without a return value.
///
/// Optional arguments bound the launch; `cuda_builder` turns them into PTX directives:
///
/// | argument | directive | promise |
/// |---|---|---|
/// | `max_threads = N` | `.maxntid N, 1, 1` | no block has more than N threads (x extent) |
/// | `min_blocks = N` | `.minnctapersm N` | at least N blocks fit on one SM; needs `max_threads` |
/// | `max_registers = N` | `.maxnreg N` | a thread uses at most N registers; excludes `min_blocks` |
/// | `parameter_align = N` | `.param .align N` | none: raises the alignment of the parameters, for tensor maps |
///
/// ```
/// use cuda_std_macros::kernel;
///
/// /// Doubles the element of the calling thread.
/// ///
/// /// # Safety
/// /// `data` points to at least one element.
/// #[kernel(max_threads = 128, min_blocks = 2)]
/// pub unsafe fn double(data: *mut f32) {
///     // SAFETY: the caller's promise
///     unsafe { *data *= 2.0 }
/// }
/// ```
///
/// The kernel's crate enables `#![feature(abi_ptx)]` on `nvptx64`, and `asm_experimental_arch` too
/// if it declares launch bounds (the bounds travel as a comment in inline assembly).
///
/// A return value is refused:
///
/// ```compile_fail
/// #[cuda_std_macros::kernel]
/// unsafe fn answer() -> u32 { 42 }
/// ```
///
/// and so are generics, safe functions and unknown arguments:
///
/// ```compile_fail
/// #[cuda_std_macros::kernel]
/// unsafe fn generic<T>(value: T) {}
/// ```
/// ```compile_fail
/// #[cuda_std_macros::kernel]
/// fn safe() {}
/// ```
/// ```compile_fail
/// #[cuda_std_macros::kernel(max_thread = 128)]
/// unsafe fn typo() {}
/// ```
#[proc_macro_attribute]
pub fn kernel(args: TokenStream, input: TokenStream) -> TokenStream {
    expand_kernel(args, input).unwrap_or_else(Error::into_compile_error)
}

fn expand_kernel(args: TokenStream, input: TokenStream) -> Result<TokenStream, Error> {
    let bounds = LaunchBounds::parse(args)?;
    let function = Function::parse(input, "kernel")?;
    function.require_kernel_signature()?;

    let mut device_body = bounds.marker().map(|marker| quote(&marker)).unwrap_or_default();
    device_body.extend(function.body.stream());

    let mut tokens = quote(r#"#[cfg(target_arch = "nvptx64")] #[unsafe(no_mangle)]"#);
    tokens.extend(function.attributes.clone());
    tokens.extend(quote(r#"pub unsafe extern "ptx-kernel" fn"#));
    tokens.extend(function.name_and_arguments());
    tokens.extend([braced(device_body, function.body.span())]);

    tokens.extend(quote(r#"#[cfg(not(target_arch = "nvptx64"))]"#));
    tokens.extend(function.attributes.clone());
    tokens.extend(quote("pub unsafe fn"));
    tokens.extend(function.name_and_arguments());
    tokens.extend([TokenTree::Group(function.body.clone())]);
    Ok(tokens)
}

/// Marks a function that only exists on the GPU: elsewhere it keeps its signature and panics when
/// called, with its name in the message.
///
/// ```should_panic
/// #[cuda_std_macros::gpu_only]
/// fn clock() -> u64 {
///     unreachable!("stands for an instruction")
/// }
/// clock();
/// ```
#[proc_macro_attribute]
pub fn gpu_only(args: TokenStream, input: TokenStream) -> TokenStream {
    expand_gpu_only(args, input).unwrap_or_else(Error::into_compile_error)
}

fn expand_gpu_only(args: TokenStream, input: TokenStream) -> Result<TokenStream, Error> {
    no_arguments(args, "gpu_only")?;
    let function = Function::parse(input, "gpu_only")?;
    let message = Literal::string(&format!("`{}` only exists on the GPU", function.name));

    let mut tokens = quote(r#"#[cfg(target_arch = "nvptx64")]"#);
    tokens.extend(function.whole_signature());
    tokens.extend([TokenTree::Group(function.body.clone())]);

    tokens.extend(quote(r#"#[cfg(not(target_arch = "nvptx64"))] #[allow(unused_variables, unused_mut)]"#));
    tokens.extend(function.whole_signature());
    let mut panic = quote("::core::unimplemented!");
    panic.extend([TokenTree::Group(Group::new(Delimiter::Parenthesis, TokenTree::Literal(message).into()))]);
    tokens.extend([braced(panic, function.body.span())]);
    Ok(tokens)
}

/// Keeps a function or static in the module under its own name although no kernel uses it.
///
/// ```
/// #[cuda_std_macros::externally_visible]
/// pub extern "C" fn version() -> u32 { 1 }
/// ```
#[proc_macro_attribute]
pub fn externally_visible(args: TokenStream, input: TokenStream) -> TokenStream {
    if let Err(error) = no_arguments(args, "externally_visible") {
        return error.into_compile_error();
    }
    let mut tokens = quote("#[unsafe(no_mangle)]");
    tokens.extend(input);
    tokens
}

/// rust-cuda's `#[address_space(..)]` cannot be had: rustc places statics in no address space but
/// global. The attribute exists to say so, and what to use instead.
#[proc_macro_attribute]
pub fn address_space(_args: TokenStream, _input: TokenStream) -> TokenStream {
    let message =
        "rustc has no address spaces for statics: use cuda_std's shared-memory functions instead of #[address_space]";
    Error::new(Span::call_site(), message).into_compile_error()
}

fn no_arguments(args: TokenStream, attribute: &str) -> Result<(), Error> {
    match args.into_iter().next() {
        None => Ok(()),
        Some(token) => Err(Error::new(token.span(), format!("#[{attribute}] takes no arguments"))),
    }
}

/// Tokens of a fixed piece of source.
fn quote(source: &str) -> TokenStream {
    source.parse().expect("the source is a literal in this crate")
}

fn braced(body: TokenStream, span: Span) -> TokenTree {
    let mut group = Group::new(Delimiter::Brace, body);
    group.set_span(span);
    TokenTree::Group(group)
}

fn respan(mut token: TokenTree, span: Span) -> TokenTree {
    token.set_span(span);
    token
}

fn is_ident(token: &TokenTree, text: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident.to_string() == text)
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// `->` arrives as two joint characters.
fn is_arrow(first: &TokenTree, second: Option<&TokenTree>) -> bool {
    let joint = |punct: &Punct| punct.as_char() == '-' && punct.spacing() == Spacing::Joint;
    matches!(first, TokenTree::Punct(punct) if joint(punct)) && second.is_some_and(|token| is_punct(token, '>'))
}

/// Keeps `Ident` spans, so that errors point at the user's name.
fn ident_token(ident: &Ident) -> TokenTree {
    TokenTree::Ident(ident.clone())
}
