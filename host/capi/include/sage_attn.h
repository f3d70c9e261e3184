// sage-attn: quantized attention (SageAttention2).
//
// Generated from host/capi/src; after a change there run
// SAGE_ATTN_WRITE_HEADER=1 cargo test -p sage-attn-capi --test header

#ifndef SAGE_ATTN_H
#define SAGE_ATTN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Success.
#define SAGE_OK 0

// The request contradicts itself, or a pointer is null.
#define SAGE_INVALID 1

// The request is sound but outside what the library does.
#define SAGE_UNSUPPORTED 2

// The request is sound but this device cannot run it as asked.
#define SAGE_PLAN 3

// The driver or the device failed.
#define SAGE_DEVICE 4

// A bug of the library; the objects of the call should not be used again.
#define SAGE_PANIC 5

// Elements are IEEE half precision.
#define SAGE_F16 0

// Elements are bfloat16.
#define SAGE_BF16 1

// Elements are IEEE single precision.
#define SAGE_F32 2

// INT8, or what the chosen kernel computes with.
#define SAGE_PRECISION_AUTO 0

// Q and K in 4 bits.
#define SAGE_PRECISION_INT4 1

// Q and K in 8 bits.
#define SAGE_PRECISION_INT8 2

// No quantization; on the CPU only.
#define SAGE_PRECISION_EXACT 3

// A scale for 128 queries and for 64 keys.
#define SAGE_GRANULARITY_BLOCK 0

// A scale for 32 queries and for 64 keys.
#define SAGE_GRANULARITY_WARP 1

// A scale for 4 queries and for 16 keys; the default.
#define SAGE_GRANULARITY_THREAD 2

// P and V in FP8.
#define SAGE_PV_FP8 0

// P and V in FP16.
#define SAGE_PV_F16 1

// Options of an attention call.
typedef struct SageAttention SageAttention;

// A GPU with the kernels that have been loaded on it.
typedef struct SageGpu SageGpu;

// The kernels, grids and buffers for one problem.
typedef struct SagePlan SagePlan;

// A tensor of four axes: batch, heads, tokens, features.
typedef struct {
  // Address of the first element, in host or device memory as the function says. May be null if there
  // are no elements.
  void *data;
  // `SAGE_F16`, `SAGE_BF16` or `SAGE_F32`.
  int32_t dtype;
  // Extents: batch, heads, tokens, features.
  size_t shape[4];
  // Elements from one entry to the next along each axis. The last is 1 and the others are positive.
  int64_t strides[4];
} SageTensor;

// What was run, and how long it took.
typedef struct {
  // Kernel, such as `sm89_int8_fp8_fwd` or `cpu_int8_fp8_fwd`, ending in zero.
  char kernel[64];
  // `cpu` or `cuda:N`, ending in zero.
  char device[16];
  // Milliseconds of the attention kernel.
  double kernel_ms;
  // Milliseconds of smoothing, quantization and attention, without copies.
  double e2e_ms;
} SageReport;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Why the last failed call on this thread failed, as a sentence in UTF-8; empty if none has. Valid until
// the next call on this thread fails.
const char *sage_last_error(void);

// Version of the library, such as `0.1.0`.
const char *sage_version(void);

// Fills in the strides of a contiguous tensor.
//
// # Safety
//
// `tensor` is null or a tensor whose type and shape are set.
int32_t sage_tensor_contiguous(SageTensor *tensor);

// Options at their defaults. Free them with `sage_attention_free`.
SageAttention *sage_attention_new(void);

// Frees options.
//
// # Safety
//
// `attention` is null or comes from `sage_attention_new`, and this is its last use.
void sage_attention_free(SageAttention *attention);

// Whether row `i` of `M` sees only keys up to `i + N - M`. Default: every key.
//
// # Safety
//
// `attention` is null or live options that no other thread uses.
int32_t sage_attention_set_causal(SageAttention *attention, bool causal);

// Factor of Q K^T, finite and not negative. Default: 1 / sqrt(features).
//
// # Safety
//
// As `sage_attention_set_causal`.
int32_t sage_attention_set_sm_scale(SageAttention *attention, float sm_scale);

// Number format of Q K^T: one of `SAGE_PRECISION_*`.
//
// # Safety
//
// As `sage_attention_set_causal`.
int32_t sage_attention_set_precision(SageAttention *attention, int32_t precision);

// Which elements of Q and of K share a scale: one of `SAGE_GRANULARITY_*`.
//
// # Safety
//
// As `sage_attention_set_causal`.
int32_t sage_attention_set_granularity(SageAttention *attention, int32_t granularity);

// Which means are subtracted before quantizing. Default: that of K, and for INT4 that of Q.
//
// # Safety
//
// As `sage_attention_set_causal`.
int32_t sage_attention_set_smoothing(SageAttention *attention, bool q, bool k, bool v);

// Number format of P V: `SAGE_PV_FP8` or `SAGE_PV_F16`. Default: the best of the device.
//
// # Safety
//
// As `sage_attention_set_causal`.
int32_t sage_attention_set_pv(SageAttention *attention, int32_t pv);

// The attention kernel to use, such as `sm80_int8_f16_fwd`; on the CPU, whose arithmetic the reference follows.
// Default: the planner chooses.
//
// # Safety
//
// As `sage_attention_set_causal`; `kernel` is null or a string.
int32_t sage_attention_set_kernel(SageAttention *attention,
                                  const char *kernel);

// Where `sage_attention_forward` computes: `auto`, `cpu` or `cuda:N`. Default: `auto`.
//
// # Safety
//
// As `sage_attention_set_causal`; `device` is null or a string.
int32_t sage_attention_set_device(SageAttention *attention, const char *device);

// Computes attention of `q` (batch, query heads, queries, features) over `k` and `v` (batch, heads, keys,
// features) into `out`, all in host memory, and waits for the result. `lse`, if not null, gets the
// natural-log log-sum-exp of every row, batch * query heads * queries values; `report`, if not null, what
// was run.
//
// # Safety
//
// Every pointer is null or points to what its type says. Every element that a tensor's strides reach is
// readable, those of `out` and `lse` writable, and nobody else writes the first or uses the second
// meanwhile.
int32_t sage_attention_forward(const SageAttention *attention,
                               const SageTensor *q,
                               const SageTensor *k,
                               const SageTensor *v,
                               const SageTensor *out,
                               float *lse,
                               SageReport *report);

// Combines attention of the same queries over two disjoint sets of keys, in host memory. `lse1` and `lse2`
// are the natural-log log-sum-exp that came with `o1` and `o2`; `out` and `lse` get the result. A part
// whose log-sum-exp is minus infinity is not read.
//
// # Safety
//
// Every pointer is null or points to what its type says: elements that the strides reach, and batch *
// heads * tokens values of log-sum-exp. Nobody else writes what is read or uses what is written meanwhile;
// `lse` may be `lse1` or `lse2`.
int32_t sage_merge(const SageTensor *o1,
                   const float *lse1,
                   const SageTensor *o2,
                   const float *lse2,
                   const SageTensor *out,
                   float *lse);

// Opens device `ordinal` in its primary context, which is also that of the CUDA runtime. All callers of a
// process share it. Free the handle with `sage_gpu_free`.
//
// # Safety
//
// `gpu` is null or a place for a pointer.
int32_t sage_gpu_open(size_t ordinal,
                      SageGpu **gpu);

// Frees a handle; the kernels stay loaded.
//
// # Safety
//
// `gpu` is null or comes from `sage_gpu_open`, and this is its last use.
void sage_gpu_free(SageGpu *gpu);

// Plans a problem: the options of `attention` on tensors of these types, shapes and strides, whose data is
// not looked at. `return_lse` says whether launches return the log-sum-exp. Free the plan with
// `sage_plan_free`.
//
// # Safety
//
// Every pointer is null or points to what its type says.
int32_t sage_plan_new(const SageAttention *attention,
                      const SageGpu *gpu,
                      const SageTensor *q,
                      const SageTensor *k,
                      const SageTensor *v,
                      const SageTensor *out,
                      bool return_lse,
                      SagePlan **result);

// Frees a plan.
//
// # Safety
//
// `plan` is null or comes from `sage_plan_new`, and this is its last use.
void sage_plan_free(SagePlan *plan);

// Bytes of scratch memory that a launch needs; 0 for a null pointer.
//
// # Safety
//
// `plan` is null or a live plan.
size_t sage_plan_workspace_bytes(const SagePlan *plan);

// What the plan runs and why, as text that lives as long as the plan; null for a null pointer.
//
// # Safety
//
// `plan` is null or a live plan.
const char *sage_plan_explain(const SagePlan *plan);

// Loads the kernels of a plan. A launch does it by itself; call this before capturing one into a graph.
//
// # Safety
//
// Every pointer is null or points to what its type says.
int32_t sage_gpu_prepare(const SageGpu *gpu,
                         const SagePlan *plan);

// Submits a plan to `stream` (a `CUstream` or `cudaStream_t`; null is the default stream) and returns
// without waiting. Addresses are device memory; strides may differ from those planned for. `lse` is null
// exactly if the plan does not return it. Nothing is allocated on the device and nothing synchronises, so
// a launch can be captured into a graph.
//
// # Safety
//
// Every pointer to an object is null or points to what its type says. The stream is live and of the
// device's primary context. Every element that a tensor's strides reach, the log-sum-exp and
// `workspace_bytes` bytes at `workspace` (a multiple of 256) are memory of this device and stay allocated
// until the stream has run the launch; until then nobody writes q, k or v, and nobody uses out, lse or the
// workspace.
int32_t sage_gpu_launch(const SageGpu *gpu,
                        const SagePlan *plan,
                        const SageTensor *q,
                        const SageTensor *k,
                        const SageTensor *v,
                        const SageTensor *out,
                        void *lse,
                        void *workspace,
                        size_t workspace_bytes,
                        void *stream);

// Combines attention over two parts of the keys in device memory, as `sage_merge` does in host memory. Submits
// one kernel to `stream` and returns without waiting. `lse` may be null if nobody needs it; what is written
// has memory of its own.
//
// # Safety
//
// As `sage_gpu_launch`; each log-sum-exp is batch * heads * tokens values of memory of this device.
int32_t sage_gpu_merge(const SageGpu *gpu,
                       const SageTensor *o1,
                       const void *lse1,
                       const SageTensor *o2,
                       const void *lse2,
                       const SageTensor *out,
                       void *lse,
                       void *stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SAGE_ATTN_H */
