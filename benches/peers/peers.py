"""Attention kernels that PyTorch ships, timed on the shapes of a result file of `gpu`, beside its figures.

    cargo run --release -p sage-benches --bin gpu -- --json ours.json
    python3 benches/peers/peers.py ours.json --json all.json

FlashAttention-2, the memory-efficient kernel of xformers and CUTLASS, and cuDNN, on normal bf16 inputs. Each figure is
the median of many launches, timed by CUDA events on a busy device, each on another copy of the inputs so that none is
left in the cache; clock and power are read while it runs. TOPS count 4 B H N^2 D operations, half of them if causal.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", help="result file of `gpu`")
    parser.add_argument("--json", help="write our figures and the peers' to this file")
    parser.add_argument("--seconds", type=float, default=0.5, help="of launches a figure")
    options = parser.parse_args()
    with open(options.ours) as file:
        report = json.load(file)
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
                    ms, (clock, power) = time_ms(run, copies, options.seconds)
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
    report["torch"] = torch.__version__
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
