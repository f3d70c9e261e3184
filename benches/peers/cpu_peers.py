#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention on the CPU, one JSON object a line.

    python3 benches/peers/cpu_peers.py --seqlen 1024,4096 --threads 2

Needs `torch` (any build). `benches/cpu` starts it as `--peer "python3 benches/peers/cpu_peers.py"` and
gives it turns, so that all see the same machine: with --serve it answers each line
`SEQLEN_Q SEQLEN_KV CAUSAL` on stdin with the milliseconds of one call, wall clock and CPU time.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F


class Case:
    def __init__(self, heads, kv_heads, head_dim, seqlen_q, seqlen_kv, causal):
        torch.manual_seed(1)
        self.q = torch.randn(1, heads, seqlen_q, head_dim)
        self.k = torch.randn(1, kv_heads, seqlen_kv, head_dim)
        self.v = torch.randn(1, kv_heads, seqlen_kv, head_dim)
        self.grouped = kv_heads != heads
        # PyTorch aligns the mask top-left; one query that is the last sees everything.
        self.causal = causal and seqlen_q > 1
        if self.causal and seqlen_q != seqlen_kv:
            raise SystemExit("causal needs as many queries as keys, or one")

    def run(self):
        begin, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal, enable_gqa=self.grouped)
        return (time.perf_counter() - begin) * 1e3, (time.process_time() - cpu) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, help="if they are fewer")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seqlen", default="1024,4096,16384")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="take cases from stdin, for benches/cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads = (options.heads, options.kv_heads or options.heads, options.head_dim)
    if options.serve:
        print(f"torch {torch.__version__}", flush=True)
        cases = {}
        for line in sys.stdin:
            seqlen_q, seqlen_kv, causal = map(int, line.split())
            key = (seqlen_q, seqlen_kv, causal)
            if key not in cases:
                cases = {key: Case(*heads, seqlen_q, seqlen_kv, bool(causal))}
            print(*cases[key].run(), flush=True)
        return
    for seqlen in map(int, options.seqlen.split(",")):
        for causal in (False, True):
            case = Case(*heads, seqlen, seqlen, causal)
            case.run()
            times = sorted(case.run()[0] for _ in range(options.rounds))
            print(json.dumps({
                "kernel": "torch_sdpa_f32", "torch": torch.__version__, "threads": options.threads,
                "heads": options.heads, "head_dim": options.head_dim, "seqlen": seqlen, "causal": causal,
                "ms": times[0], "median_ms": times[len(times) // 2],
            }), flush=True)


if __name__ == "__main__":
    main()
