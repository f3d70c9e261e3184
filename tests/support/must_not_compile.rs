//! Programs that must not compile, each after one that does and differs in what matters. They are documentation tests,
//! so that the compiler itself is asked; with a nightly one also for the number of the error.
//!
//! # An input is not written while it is viewed
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! println!("{:?}", view.spec());
//! x[0] = 1.0;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0502
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! x[0] = 1.0;
//! println!("{:?}", view.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # An output is not read while it may be written
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut out = vec![0.0f32; 32];
//! let view = TensorViewMut::new(&mut out, &shape, Layout::Hnd)?;
//! println!("{:?}", view.spec());
//! println!("{}", out[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0502
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut out = vec![0.0f32; 32];
//! let view = TensorViewMut::new(&mut out, &shape, Layout::Hnd)?;
//! println!("{}", out[0]);
//! println!("{:?}", view.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # An output is written by one at a time
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut out = vec![0.0f32; 64];
//! let (a, b) = out.split_at_mut(32);
//! let (a, b) = (TensorViewMut::new(a, &shape, Layout::Hnd)?, TensorViewMut::new(b, &shape, Layout::Hnd)?);
//! println!("{:?} {:?}", a.spec(), b.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0499
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut out = vec![0.0f32; 64];
//! let (a, b) = (TensorViewMut::new(&mut out, &shape, Layout::Hnd)?, TensorViewMut::new(&mut out, &shape, Layout::Hnd)?);
//! println!("{:?} {:?}", a.spec(), b.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # An output is none of the inputs
//!
//! ```no_run
//! # use sage_attn::{Attention, Layout, SideInputs, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let mut out = vec![0.0f32; 32];
//! let q = TensorView::new(&x, &shape, Layout::Hnd)?;
//! let mut out = TensorViewMut::new(&mut out, &shape, Layout::Hnd)?;
//! Attention::new().forward_into(&q, &q, &q, &mut out)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0502
//! # use sage_attn::{Attention, Layout, SideInputs, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let mut x = vec![0.0f32; 32];
//! let q = TensorView::new(&x, &shape, Layout::Hnd)?;
//! let mut out = TensorViewMut::new(&mut x, &shape, Layout::Hnd)?;
//! Attention::new().forward_into(&q, &q, &q, &mut out)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A view does not outlive its elements
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! println!("{:?}", view.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0597
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let view = {
//!     let x = vec![0.0f32; 32];
//!     TensorView::new(&x, &shape, Layout::Hnd)?
//! };
//! println!("{:?}", view.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Elements are not given away while they are viewed
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! println!("{:?}", view.spec());
//! drop(x);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0505
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! drop(x);
//! println!("{:?}", view.spec());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Elements are f16, bf16 or f32
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! TensorView::new(&x, &shape, Layout::Hnd)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0277
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f64; 32];
//! TensorView::new(&x, &shape, Layout::Hnd)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Nobody adds an element type
//!
//! ```no_run
//! # use sage_attn::{DType, Element};
//! fn of<T: Element>() -> DType {
//!     T::DTYPE
//! }
//! assert_eq!(of::<f32>(), DType::F32);
//! ```
//!
//! ```compile_fail,E0277
//! # use sage_attn::{DType, Element};
//! #[repr(transparent)]
//! struct Mine(f32);
//! impl Element for Mine {
//!     const DTYPE: DType = DType::F32;
//! }
//! ```
//!
//! # A problem is checked, not made up
//!
//! ```no_run
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! let another = Problem::new(Request { causal: true, ..problem.request().clone() })?;
//! println!("{another:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0451
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! let another = Problem { sm_scale: f32::NAN, ..problem };
//! println!("{another:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # ... and stays as it was checked
//!
//! ```no_run
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! println!("{}", problem.dims().batch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0616
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! let mut problem = problem;
//! problem.dims.batch = 7;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # ... also through what it shows of itself
//!
//! ```no_run
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! println!("{}", problem.request().causal);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0594
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! problem.request().causal = true;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A plan stays as it was made
//!
//! ```no_run
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! # use sage_attn::plan::{Capability, plan};
//! # let device = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
//! # let plan = plan(&problem, &device)?;
//! println!("{}", plan.workspace().total_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0616
//! # use sage_attn::error::Operand;
//! # use sage_attn::problem::{Problem, Request, TensorSpec};
//! # use sage_attn::{DType, Layout};
//! # let spec = TensorSpec::new(Operand::Q, DType::F16, &[1, 8, 100, 64], Layout::Hnd)?;
//! # let problem = Problem::new(Request::new(spec, spec, spec, spec))?;
//! # use sage_attn::plan::{Capability, plan};
//! # let device = Capability { major: 9, minor: 0, sm_count: 132, smem_opt_in: 232_448 };
//! # let plan = plan(&problem, &device)?;
//! let mut plan = plan;
//! plan.workspace = Default::default();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Cumulative lengths are checked, not made up
//!
//! ```no_run
//! # use sage_attn::Sequences;
//! let sequences = Sequences::new(&[0, 3], &[0, 5])?;
//! println!("{sequences:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0451
//! # use sage_attn::Sequences;
//! let sequences = Sequences { q: vec![0, 3], kv: vec![0, 5] };
//! println!("{sequences:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Side inputs do not outlive their data
//!
//! ```no_run
//! # use sage_attn::SideInputs;
//! let slopes = vec![0.5f32];
//! let side = SideInputs::new().alibi(&slopes);
//! println!("{side:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0716
//! # use sage_attn::SideInputs;
//! let side = SideInputs::new().alibi(&vec![0.5f32]);
//! println!("{side:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A mask is not written while it is used
//!
//! ```no_run
//! # use sage_attn::{MaskView, SideInputs};
//! let mut mask = vec![true; 20];
//! let side = SideInputs::new().mask(MaskView::new(&mask, [1, 1, 4, 5])?);
//! println!("{side:?}");
//! mask[3] = false;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0502
//! # use sage_attn::{MaskView, SideInputs};
//! let mut mask = vec![true; 20];
//! let side = SideInputs::new().mask(MaskView::new(&mask, [1, 1, 4, 5])?);
//! mask[3] = false;
//! println!("{side:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Raw addresses are launched in an unsafe block only
//!
//! ```no_run
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{Gpu, LaunchArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, args: &LaunchArgs, stream: CUstream) {
//!     // SAFETY: the caller's.
//!     let _ = unsafe { gpu.launch(plan, args, stream) };
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{Gpu, LaunchArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, args: &LaunchArgs, stream: CUstream) {
//!     let _ = gpu.launch(plan, args, stream);
//! }
//! ```
//!
//! # The output of a launch is not one of its inputs
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! ```compile_fail,E0502
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (y.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! # Buffers are not freed before they are launched on
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//!     drop(y);
//! }
//! ```
//!
//! ```compile_fail,E0505
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     drop(y);
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! # Arguments are launched once
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! ```compile_fail,E0382
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut scratch: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: scratch.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! # Inputs of a launch have one type
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, args: SliceArgs<'_, f32, f32>, stream: &Arc<CudaStream>) {
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! ```compile_fail,E0277
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, args: SliceArgs<'_, u8, f32>, stream: &Arc<CudaStream>) {
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! # A cache is appended to by one at a time
//!
//! ```no_run
//! # use sage_attn::{KvCache, TensorView};
//! fn append(cache: &mut KvCache, x: &TensorView<'_>) {
//!     let _ = cache.append(x, x);
//! }
//! ```
//!
//! ```compile_fail,E0596
//! # use sage_attn::{KvCache, TensorView};
//! fn append(cache: &KvCache, x: &TensorView<'_>) {
//!     let _ = cache.append(x, x);
//! }
//! ```
//!
//! # Threads share what they read, not what they write
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! std::thread::scope(|scope| {
//!     scope.spawn(|| println!("{:?}", view.spec()));
//!     scope.spawn(|| println!("{:?}", view.spec()));
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0499
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! use sage_attn::Attention;
//! let (x, mut y) = (vec![0.0f32; 32], vec![0.0f32; 32]);
//! let q = TensorView::new(&x, &shape, Layout::Hnd)?;
//! let mut out = TensorViewMut::new(&mut y, &shape, Layout::Hnd)?;
//! std::thread::scope(|scope| {
//!     scope.spawn(|| Attention::new().forward_into(&q, &q, &q, &mut out));
//!     scope.spawn(|| Attention::new().forward_into(&q, &q, &q, &mut out));
//! });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A thread does not outlive what it reads
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! std::thread::scope(|scope| _ = scope.spawn(|| println!("{:?}", view.spec())));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0597
//! # use sage_attn::{Layout, TensorView, TensorViewMut};
//! # let shape = [1, 1, 4, 8];
//! let x = vec![0.0f32; 32];
//! let view = TensorView::new(&x, &shape, Layout::Hnd)?;
//! std::thread::spawn(move || println!("{:?}", view.spec()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A DLPack capsule stays with its thread until it is taken
//!
//! ```no_run
//! # use sage_attn::dlpack::Export;
//! # use sage_attn::{DType, Tensor};
//! # let export = Export::tensor(Tensor::zeros(DType::F32, [1, 1, 4, 8])?);
//! println!("{export:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0277
//! # use sage_attn::dlpack::Export;
//! # use sage_attn::{DType, Tensor};
//! # let export = Export::tensor(Tensor::zeros(DType::F32, [1, 1, 4, 8])?);
//! let capsule = export.into_versioned();
//! std::thread::spawn(move || println!("{capsule:?}"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # An imported tensor does not outlive its owner
//!
//! ```no_run
//! # use sage_attn::dlpack::Import;
//! fn read(import: Import) {
//!     println!("{}", import.view().is_ok());
//!     drop(import);
//! }
//! ```
//!
//! ```compile_fail,E0505
//! # use sage_attn::dlpack::Import;
//! fn read(import: Import) {
//!     let view = import.view();
//!     drop(import);
//!     println!("{}", view.is_ok());
//! }
//! ```
//!
//! # Errors may be added
//!
//! ```no_run
//! # use sage_attn::Error;
//! fn code(error: &Error) -> i32 {
//!     match error {
//!         Error::Device(_) => 2,
//!         _ => 1,
//!     }
//! }
//! ```
//!
//! ```compile_fail,E0004
//! # use sage_attn::Error;
//! fn code(error: &Error) -> i32 {
//!     match error {
//!         Error::Device(_) => 2,
//!         Error::Invalid(_) | Error::Unsupported(_) | Error::Plan(_) => 1,
//!     }
//! }
//! ```
//!
//! # A tensor is not viewed for writing while it is viewed
//!
//! ```no_run
//! # use sage_attn::{DType, Tensor};
//! # let mut x = Tensor::zeros(DType::F32, [1, 1, 4, 8])?;
//! println!("{:?}", x.view()?);
//! println!("{:?}", x.view_mut()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0502
//! # use sage_attn::{DType, Tensor};
//! # let mut x = Tensor::zeros(DType::F32, [1, 1, 4, 8])?;
//! let view = x.view()?;
//! println!("{:?}", x.view_mut()?);
//! println!("{view:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A tensor is not given away while it is viewed
//!
//! ```no_run
//! # use sage_attn::{DType, Tensor};
//! # let mut x = Tensor::zeros(DType::F32, [1, 1, 4, 8])?;
//! println!("{:?}", x.view_mut()?);
//! drop(x);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0505
//! # use sage_attn::{DType, Tensor};
//! # let mut x = Tensor::zeros(DType::F32, [1, 1, 4, 8])?;
//! let view = x.view_mut()?;
//! drop(x);
//! println!("{view:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Data of an output do not outlive it
//!
//! ```no_run
//! # use sage_attn::api::Output;
//! fn read(output: Output) {
//!     println!("{:?}", output.out.data());
//!     drop(output);
//! }
//! ```
//!
//! ```compile_fail,E0505
//! # use sage_attn::api::Output;
//! fn read(output: Output) {
//!     let data = output.out.data();
//!     drop(output);
//!     println!("{data:?}");
//! }
//! ```
//!
//! # A view is checked, not made up
//!
//! ```no_run
//! # use sage_attn::{Layout, TensorView};
//! let x = [0.0f32; 32];
//! println!("{:?}", TensorView::new(&x, &[1, 1, 4, 8], Layout::Hnd)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0451
//! # use sage_attn::{Layout, TensorView};
//! fn longer(view: TensorView<'_>) -> TensorView<'_> {
//!     let mut spec = *view.spec();
//!     spec.shape[2] = 1 << 40;
//!     TensorView { spec, ..view }
//! }
//! ```
//!
//! # A bias does not outlive its elements
//!
//! ```no_run
//! # use sage_attn::{BiasView, SideInputs};
//! let bias = vec![0.0f32; 20];
//! let side = SideInputs::new().bias(BiasView::new(&bias, [1, 1, 4, 5])?);
//! println!("{side:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0597
//! # use sage_attn::{BiasView, SideInputs};
//! let side = {
//!     let bias = vec![0.0f32; 20];
//!     SideInputs::new().bias(BiasView::new(&bias, [1, 1, 4, 5])?)
//! };
//! println!("{side:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Windows have no negative sides
//!
//! ```no_run
//! # use sage_attn::Window;
//! println!("{:?}", Window { left: Some(1), right: None });
//! ```
//!
//! ```compile_fail,E0600
//! # use sage_attn::Window;
//! println!("{:?}", Window { left: Some(-1), right: None });
//! ```
//!
//! # Cumulative lengths are not negative
//!
//! ```no_run
//! # use sage_attn::Sequences;
//! println!("{:?}", Sequences::new(&[0, 3], &[0, 5])?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```compile_fail,E0600
//! # use sage_attn::Sequences;
//! println!("{:?}", Sequences::new(&[0, -3], &[0, 5])?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Options of a cache build one
//!
//! ```no_run
//! # use sage_attn::KvCacheOptions;
//! let options = KvCacheOptions::new(1, 2, 64, 100);
//! println!("{}", options.clone().build().is_ok() && options.build().is_ok());
//! ```
//!
//! ```compile_fail,E0382
//! # use sage_attn::KvCacheOptions;
//! let options = KvCacheOptions::new(1, 2, 64, 100);
//! println!("{}", options.build().is_ok() && options.build().is_ok());
//! ```
//!
//! # A cache is attended to by one at a time: it fills scratch memory of its own
//!
//! ```no_run
//! # use sage_attn::{Attend, KvCache, TensorView};
//! fn attend(cache: &mut KvCache, q: &TensorView<'_>) {
//!     let _ = cache.attend(q, &Attend::default());
//! }
//! ```
//!
//! ```compile_fail,E0596
//! # use sage_attn::{Attend, KvCache, TensorView};
//! fn attend(cache: &KvCache, q: &TensorView<'_>) {
//!     let _ = cache.attend(q, &Attend::default());
//! }
//! ```
//!
//! # Parts are merged at raw addresses in an unsafe block only
//!
//! ```no_run
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{Gpu, MergeArgs};
//! fn run(gpu: &Gpu, args: &MergeArgs, stream: CUstream) {
//!     // SAFETY: the caller's.
//!     let _ = unsafe { gpu.merge(args, stream) };
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{Gpu, MergeArgs};
//! fn run(gpu: &Gpu, args: &MergeArgs, stream: CUstream) {
//!     let _ = gpu.merge(args, stream);
//! }
//! ```
//!
//! # ... as a cache is appended to
//!
//! ```no_run
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{AppendArgs, Gpu};
//! fn run(gpu: &Gpu, args: &AppendArgs, stream: CUstream) {
//!     // SAFETY: the caller's.
//!     let _ = unsafe { gpu.cache_append(args, stream) };
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use sage_attn::cudarc::driver::sys::CUstream;
//! # use sage_attn::device::{AppendArgs, Gpu};
//! fn run(gpu: &Gpu, args: &AppendArgs, stream: CUstream) {
//!     let _ = gpu.cache_append(args, stream);
//! }
//! ```
//!
//! # ... and a capsule is taken
//!
//! ```no_run
//! # use sage_attn::Layout;
//! # use sage_attn::dlpack::Import;
//! # use sage_attn::dlpack::abi::DlManagedTensor;
//! fn take(capsule: *mut DlManagedTensor) {
//!     // SAFETY: the caller's.
//!     let _ = unsafe { Import::legacy(capsule, Layout::Hnd) };
//! }
//! ```
//!
//! ```compile_fail,E0133
//! # use sage_attn::Layout;
//! # use sage_attn::dlpack::Import;
//! # use sage_attn::dlpack::abi::DlManagedTensor;
//! fn take(capsule: *mut DlManagedTensor) {
//!     let _ = Import::legacy(capsule, Layout::Hnd);
//! }
//! ```
//!
//! # The workspace of a launch is not its output
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut y: CudaSlice<f32>, mut z: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     let args = SliceArgs { q, k, v, out: y.as_view_mut(), lse: None, workspace: z.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! ```compile_fail,E0499
//! # use std::sync::Arc;
//! # use sage_attn::cudarc::driver::{CudaSlice, CudaStream};
//! # use sage_attn::device::{Gpu, SliceArgs};
//! # use sage_attn::plan::Plan;
//! fn run(gpu: &Gpu, plan: &Plan, x: CudaSlice<f32>, mut z: CudaSlice<u8>, stream: &Arc<CudaStream>) {
//!     let (q, k, v) = (x.as_view(), x.as_view(), x.as_view());
//!     // SAFETY: any bytes are numbers.
//!     let out = unsafe { z.transmute_mut::<f32>(16) };
//!     let args = SliceArgs { q, k, v, out: out.unwrap(), lse: None, workspace: z.as_view_mut() };
//!     let _ = gpu.launch_slices(plan, args, stream);
//! }
//! ```
//!
//! # A device is opened, not made up
//!
//! ```no_run
//! # use sage_attn::device::Gpu;
//! println!("{:?}", Gpu::open(0).is_ok());
//! ```
//!
//! ```compile_fail,E0451
//! # use sage_attn::device::Gpu;
//! let gpu = Gpu { ..std::process::abort() };
//! println!("{:?}", gpu);
//! ```
