"""Attention kernels that PyTorch ships, timed on the shapes of a result file of `gpu`, beside its figures.

    cargo run --release -p sage-benches --bin gpu -- --json ours.json
    python3 benches/peers/peers.py ours.json --json all.json

FlashAttention-2, the memory-efficient kernel of xformers and CUTLASS, and cuDNN, on normal bf16 inputs. Each figure is
the median of many launches, timed by CUDA events on a busy device, each on another copy of the inputs so that none is
left in the cache; clock and power are read while it runs. TOPS count 4 B H N^2 D operations, half of them if causal.

For a result file of `gpu --decode`, the same kernels attend over FP16 keys and values of the same shapes; figures are
times and bytes of keys and values per second.
"""

import argparse
import json
import subprocess
import threading

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PEERS = {
    "flash_attention_2": SDPBackend.FLASH_ATTENTION,
    "xformers_cutlass": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def clock_and_power():
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"]
    fields = subprocess.run(query, capture_output=True, text=True).stdout.strip().split(",")
    return [float(field) for field in fields] if len(fields) == 2 else [None, None]


def time_ms(run, copies, seconds):
    """Median milliseconds of `run(copy)`, and the clock and power in the middle of it."""
    for copy in copies:
        run(copy)
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run(copies[0])
    end.record()
    end.synchronize()
    launches = max(10, min(400, int(seconds * 1e3 / begin.elapsed_time(end))))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(launches + 1)]
    reading = []
    reader = threading.Thread(target=lambda: reading.extend(clock_and_power()))
    events[0].record()
    for i in range(launches):
        run(copies[i % len(copies)])
        events[i + 1].record()
        if i == launches // 3:
            reader.start()
    torch.cuda.synchronize()
    reader.join()
    times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))
    return times[len(times) // 2], reading


def decode(report, seconds):
    """The peers on the shapes of attention over a cache."""
    report["peers"] = []
    shapes = []
    for case in report["decode"]:
        shape = [case[key] for key in ("batch", "context", "heads", "heads_kv", "seqlen_q", "head_dim")]
        if shape not in shapes:
            shapes.append(shape)
    for batch, context, heads, heads_kv, seqlen_q, head_dim in shapes:
        print(f"\nB={batch} N={context} H={heads}/{heads_kv} M={seqlen_q} D={head_dim}")
        cache_bytes = 2 * batch * heads_kv * context * head_dim * 2
        kv = [batch, heads_kv, context, head_dim]
        random = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.float16)
        copies = [
            [random(batch, heads, seqlen_q, head_dim), random(*kv), random(*kv)]
            for _ in range(max(1, -(-400_000_000 // cache_bytes)))
        ]
        figures = {}
        for name in ("flash_attention_2", "cudnn"):
            try:
                with sdpa_kernel(PEERS[name]):
                    run = lambda qkv: scaled_dot_product_attention(*qkv, enable_gqa=True)
                    ms, (clock, power) = time_ms(run, copies, seconds)
            except RuntimeError as error:
                print(f"  {name:20} does not run: {str(error).splitlines()[0]}")
                continue
            figures[name] = ms
            entry = {"peer": name, "batch": batch, "context": context, "heads": heads, "heads_kv": heads_kv}
            entry |= {"seqlen_q": seqlen_q, "head_dim": head_dim, "ms": ms, "bytes": cache_bytes}
            report["peers"].append(entry | {"gb_per_s": cache_bytes / ms / 1e6, "sm_clock_mhz": clock, "power_w": power})
            print(f"  {name:20} {ms * 1e3:9.1f} us  {cache_bytes / ms / 1e6:6.0f} GB/s")
        for case in report["decode"]:
            if [case["batch"], case["context"], case["head_dim"]] == [batch, context, head_dim]:
                ratios = ", ".join(f"{ms / case['ms']:.2f}x {name}" for name, ms in figures.items())
                print(f"  {case['kernel']:20} {case['ms'] * 1e3:9.1f} us  {case['gb_per_s']:6.0f} GB/s: {ratios}")
        del copies


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", help="result file of `gpu`")
    parser.add_argument("--json", help="write our figures and the peers' to this file")
    parser.add_argument("--seconds", type=float, default=0.5, help="of launches a figure")
    options = parser.parse_args()
    with open(options.ours) as file:
        report = json.load(file)
    if "decode" in report:
        decode(report, options.seconds)
    else:
        forward(report, options.seconds)
    report["torch"] = torch.__version__
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)


def forward(report, seconds):
    """The peers on the shapes of attention."""
    shape = [report["batch"], report["heads"], report["seqlen"]]
    rows = {}
    for case in report["cases"]:
        rows.setdefault((case["head_dim"], case["causal"]), []).append(case)
    report["peers"] = []
    for (head_dim, causal), cases in rows.items():
        print(f"\nB={shape[0]} H={shape[1]} N={shape[2]} D={head_dim}{' causal' if causal else ''}")
        flop = 4 * shape[0] * shape[1] * shape[2] ** 2 * head_dim / (2 if causal else 1)
        figures = {}
        bytes_of_one = 3 * shape[0] * shape[1] * shape[2] * head_dim * 2
        copies = [
            [torch.randn(*shape, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
            for _ in range(max(1, min(8, -(-200_000_000 // bytes_of_one))))
        ]
        for name, backend in PEERS.items():
            try:
                with sdpa_kernel(backend):
                    run = lambda qkv: scaled_dot_product_attention(*qkv, is_causal=causal)
                    ms, (clock, power) = time_ms(run, copies, seconds)
            except RuntimeError as error:
                print(f"  {name:20} does not run: {str(error).splitlines()[0]}")
                continue
            figures[name] = flop / ms / 1e9
            entry = {"peer": name, "head_dim": head_dim, "causal": causal, "ms": ms, "tops": figures[name]}
            report["peers"].append(entry | {"sm_clock_mhz": clock, "power_w": power})
            print(f"  {name:20} {figures[name]:7.1f} TOPS  {ms:8.3f} ms  {clock} MHz {power} W")
        for case in cases:
            ratios = ", ".join(f"{case['e2e_tops'] / tops:.2f}x {name}" for name, tops in figures.items())
            print(f"  {case['kernel']:20} {case['tops']:7.1f} TOPS, end to end {case['e2e_tops']:7.1f}: {ratios}")


if __name__ == "__main__":
    main()
