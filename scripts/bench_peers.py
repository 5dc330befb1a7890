#!/usr/bin/env python3
"""What `danlu bench` measured, measured with PyTorch on the same machine, as one table of ratios.

    danlu bench --kept FOLDER --keep && python3 scripts/bench_peers.py FOLDER/ADAPTER.json

PyTorch takes CUDA (or ROCm) where it finds it, else the CPU; on a CPU what would take minutes is left out. f32 is f32: TF32 is off.
A ratio above 1 says that Danlu is faster, or, of memory, that it takes less. Times are medians.
"""

import argparse
import json
import re
import statistics
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sync():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median(run, seconds=1.0, most=50):
    """Median seconds of `run`, after one to warm up; at least three, for about `seconds`."""
    run()
    sync()
    times = []
    while len(times) < 3 or (len(times) < most and sum(times) < seconds):
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def burst(run):
    """Median seconds of one of several runs in a row: kernels are timed without the way to the device and back."""
    count = max(1, min(100, int(2e-3 / max(median(run, 0.1, 5), 1e-6))))
    return median(lambda: [run() for _ in range(count)]) / count


def matmul(n, dtype):
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    out = torch.empty(n, n, device=DEVICE, dtype=dtype)
    return burst(lambda: torch.mm(a, b, out=out))


def attention(seq):
    """Causal, nine heads of 64, forward and backward."""
    q, k, v = (torch.randn(1, 9, seq, 64, device=DEVICE, requires_grad=True) for _ in range(3))

    def run():
        q.grad = k.grad = v.grad = None
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    return burst(run)


def model(preset):
    """The preset's shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(ROOT / "models" / preset)
    config.use_cache = False
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(DEVICE)


def train_step(preset, batch, seq, compiled):
    """Seconds of forward, backward, clipping and AdamW in f32, and the most bytes that they took."""
    net = model(preset)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=DEVICE == "cuda")
    tokens = torch.randint(net.config.vocab_size, (batch, seq), device=DEVICE)
    forward = torch.compile(net) if compiled else net

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median(run, 2.0)
    return seconds, torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def decode(preset, dtype, context):
    """Seconds of one token behind context - 1 others."""
    from transformers import DynamicCache

    net = model(preset).to(dtype).eval()
    tokens = torch.randint(net.config.vocab_size, (1, context - 1), device=DEVICE)
    with torch.no_grad():
        cache = DynamicCache()
        net(input_ids=tokens, past_key_values=cache, use_cache=True)

        def run():
            net(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)
            cache.crop(-1)

        return median(run)


def tried(run, *args):
    """The result, or None and a line that says why not."""
    try:
        return run(*args)
    except Exception as e:  # a peer that fails is a row without figures
        print(f"PyTorch: {run.__name__}{args}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
        return None
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, mine, theirs, unit="ms", factor=1e3):
        """One comparison of seconds or bytes; None where one side has no figure."""
        figure = lambda x: "–" if x is None else f"{x * factor:.2f} {unit}"
        ratio = f"{theirs / mine:.2f}" if mine and theirs else "–"
        self.rows.append((what, figure(mine), figure(theirs), ratio))

    def print(self):
        rows = [("what", "Danlu", "PyTorch", "ratio"), *self.rows]
        widths = [max(len(r[i]) for r in rows) for i in range(4)]
        for i, row in enumerate(rows):
            print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")
            if i == 0:
                print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def compare(report, quick):
    entries = {e["name"]: e for e in report["entries"]}
    small = quick or DEVICE == "cpu"
    table = Table()
    sizes = [256] if quick else [512, 1024, 2048] if small else [1024, 2048, 4096, 8192]
    for n in sizes:
        mine = entries.get(f"cube: matmul {n}×{n}×{n} nn")
        table.add(f"matmul f32 {n}³", mine and mine["seconds"]["median"], tried(matmul, n, torch.float32))
    if not small:
        # Danlu has no product of f16 operands yet: what it is to reach stands there.
        for n in sizes:
            table.add(f"matmul f16 {n}³", None, tried(matmul, n, torch.float16))
    heads = {int(m[1]): name for name in entries if (m := re.fullmatch(r"attention: attention f32\[1,(\d+),9,64\]", name))}
    for seq in heads:
        parts = [e for name, e in entries.items() if re.match(r"attention: attention", name)]
        table.add(f"attention forward and backward, T {seq}", sum(e["seconds"]["median"] for e in parts), tried(attention, seq))
    for name, entry in entries.items():
        if m := re.fullmatch(r"train step (story-1m|smollm2-135m) (\d+)×(\d+)", name):
            preset, batch, seq = m[1], int(m[2]), int(m[3])
            mine = entry["seconds"]["median"]
            eager = tried(train_step, preset, batch, seq, False)
            table.add(f"{name}, eager", mine, eager and eager[0])
            if not small:
                compiled = tried(train_step, preset, batch, seq, True)
                table.add(f"{name}, compiled", mine, compiled and compiled[0])
            if eager and eager[1]:
                table.add(f"{name}, bytes", entry["device_bytes"], eager[1], "MiB", 2**-20)
        if m := re.fullmatch(r"decode (\S+) (f32|bf16) 1 at (\d+)", name):
            if entry["kernel"] or (m[1].startswith("llama") and small):
                continue
            dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[m[2]]
            table.add(f"{name}, a token", entry["seconds"]["median"], tried(decode, m[1], dtype, int(m[3])))
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what `danlu bench --kept FOLDER --keep` wrote")
    parser.add_argument("--quick", action="store_true", help="the sizes of `danlu bench --quick`")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    report = json.loads(args.report.read_text())
    theirs = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = compare(report, args.quick)
    print(f"Danlu on {report['adapter']['name']}; PyTorch {torch.__version__} on {theirs}; TF32 off; a ratio above 1 is Danlu's")
    table.print()


if __name__ == "__main__":
    main()
