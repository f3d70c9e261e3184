//! Properties of the CPU reference and of the quantization recipe itself.

mod attention;
mod modifiers;
mod problem;
mod quantize;
mod real_data;
mod second;
