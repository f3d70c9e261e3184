// Attention from C: computes a small problem on the CPU, then again in two parts that are merged.
//
//   cargo build --release -p sage-attn-capi
//   cc -I host/capi/include host/capi/examples/attention.c -L target/release -lsage_attn_capi -lm

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "sage_attn.h"

enum { HEADS = 2, QUERIES = 3, KEYS = 40, FEATURES = 16 };

static void check(int32_t status) {
  if (status != SAGE_OK) {
    fprintf(stderr, "error %d: %s\n", (int)status, sage_last_error());
    exit(1);
  }
}

// Tokens `begin` to `end` of a contiguous f32 tensor of `tokens` tokens.
static SageTensor part(float *data, size_t tokens, size_t begin, size_t end) {
  SageTensor tensor = {data, SAGE_F32, {1, HEADS, tokens, FEATURES}, {0}};
  check(sage_tensor_contiguous(&tensor));
  tensor.data = data + begin * FEATURES;
  tensor.shape[2] = end - begin;
  return tensor;
}

int main(void) {
  static float q[HEADS * QUERIES * FEATURES], k[HEADS * KEYS * FEATURES], v[HEADS * KEYS * FEATURES];
  static float whole[HEADS * QUERIES * FEATURES], o1[HEADS * QUERIES * FEATURES], o2[HEADS * QUERIES * FEATURES];
  float lse[HEADS * QUERIES], lse1[HEADS * QUERIES], lse2[HEADS * QUERIES];
  for (int i = 0; i < HEADS * QUERIES * FEATURES; i++) q[i] = sinf(0.3f * (float)i);
  for (int i = 0; i < HEADS * KEYS * FEATURES; i++) {
    k[i] = cosf(0.7f * (float)i);
    v[i] = sinf(1.1f * (float)i);
  }

  SageAttention *attention = sage_attention_new();
  check(sage_attention_set_device(attention, "cpu"));
  check(sage_attention_set_precision(attention, SAGE_PRECISION_EXACT));

  SageTensor tq = part(q, QUERIES, 0, QUERIES), tout = part(whole, QUERIES, 0, QUERIES);
  SageTensor tk = part(k, KEYS, 0, KEYS), tv = part(v, KEYS, 0, KEYS);
  SageReport report;
  check(sage_attention_forward(attention, &tq, &tk, &tv, &tout, lse, &report));
  printf("%s on %s\n", report.kernel, report.device);

  // The first 15 keys and the others.
  SageTensor t1 = part(o1, QUERIES, 0, QUERIES), t2 = part(o2, QUERIES, 0, QUERIES);
  SageTensor k1 = part(k, KEYS, 0, 15), v1 = part(v, KEYS, 0, 15);
  SageTensor k2 = part(k, KEYS, 15, KEYS), v2 = part(v, KEYS, 15, KEYS);
  check(sage_attention_forward(attention, &tq, &k1, &v1, &t1, lse1, NULL));
  check(sage_attention_forward(attention, &tq, &k2, &v2, &t2, lse2, NULL));
  static float merged[HEADS * QUERIES * FEATURES];
  SageTensor tm = part(merged, QUERIES, 0, QUERIES);
  check(sage_merge(&t1, lse1, &t2, lse2, &tm, lse1));

  float worst = 0.0f;
  for (int i = 0; i < HEADS * QUERIES * FEATURES; i++) worst = fmaxf(worst, fabsf(merged[i] - whole[i]));
  for (int i = 0; i < HEADS * QUERIES; i++) worst = fmaxf(worst, fabsf(lse1[i] - lse[i]));
  printf("two parts differ from the whole by %s\n", worst < 1e-5f ? "less than 1e-5" : "too much");

  // Errors are codes with a sentence.
  tk.shape[2] = 7;
  int32_t status = sage_attention_forward(attention, &tq, &tk, &tv, &tout, NULL, NULL);
  printf("status %d: %s\n", (int)status, sage_last_error());
  sage_attention_free(attention);
  return worst < 1e-5f && status == SAGE_INVALID ? 0 : 1;
}
