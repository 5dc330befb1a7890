#!/usr/bin/env python3
"""What `danlu bench` measured beside what PyTorch takes for the same on the same machine, as one table.

    danlu bench --json >report.json && python3 scripts/bench_peers.py [--danlu BINARY] [--meganeura BINARY] report.json ...

PyTorch takes CUDA (or ROCm) where it finds it, else the CPU; on a CPU what would take minutes is left out, and without PyTorch
its column stays empty. f32 is f32: TF32 is off. Mixed is autocast to f16 with a GradScaler. A ratio above 1 says that Danlu is
faster, or, of memory, that it takes less. "Of roof" is what Danlu reaches of the device's own limit, measured in the same run:
of its bandwidth where one token is decoded. "Reach" is what docs/benchmarks.md wants. Times are medians.

With --danlu a fresh cache is filled by one start of training, and a second start is timed up to its first step, without the seconds
in which weights are drawn and written to the device, and without those of a step.

--meganeura is meganeura's own example of a training step of SmolLM2-135M, built by hand in a checkout of its repository:
`cargo build --release --example smollm2_train_bench`; it takes its own choice of adapter.

--check only asks whether both compute on the same device, before anything is measured: where Danlu finds a CPU alone and PyTorch a
GPU, nothing can be compared, and a sentence says what to do.

The exit code is 1 where something that is to be reached is not, or Danlu has no figure, and a sentence says what.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    torch, missing = None, error

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch and torch.cuda.is_available() else "cpu"


NO_DRIVER = """Danlu takes {mine}, a CPU, and PyTorch {theirs}: no Vulkan driver of that GPU is visible here, or another adapter is asked for.
 - A container gets NVIDIA's by NVIDIA_DRIVER_CAPABILITIES=all (or graphics,compute,utility) where it is started, as in
   `docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all`, and wants the loader: `apt-get install libvulkan1`; AMD's and Intel's
   are `apt-get install mesa-vulkan-drivers`, with /dev/dri handed in.
 - The driver's manifest, nvidia_icd.json or radeon_icd.x86_64.json, lies in /usr/share/vulkan/icd.d or /etc/vulkan/icd.d;
   VK_DRIVER_FILES=FILE names one that lies elsewhere.
 - `danlu doctor` lists what is found; DANLU_ADAPTER=NAME (--adapter) takes another. To compare on the CPU, set CUDA_VISIBLE_DEVICES= to
   nothing."""
TWO_DEVICES = """PyTorch takes {theirs}, and Danlu {mine}: if these are two devices, so are the ratios'. CUDA_VISIBLE_DEVICES=N chooses
   PyTorch's, and DANLU_ADAPTER=NAME or NUMBER (--adapter) Danlu's, of those that `danlu doctor` lists."""
NO_CUDA = "PyTorch computes on the CPU, and Danlu on {mine}: the ratios are of two devices; install a PyTorch of CUDA or ROCm."


def apart(mine, is_cpu, theirs):
    """Whether nothing can be compared, and a sentence, where Danlu's adapter is not PyTorch's device, which is None for a CPU."""
    plain = lambda name: re.sub(r"\(r\)|\(tm\)|[^a-z0-9]", "", name.lower())
    if theirs is None:
        return False, None if is_cpu else NO_CUDA.format(mine=mine)
    if is_cpu:
        return True, NO_DRIVER.format(mine=mine, theirs=theirs)
    return False, None if plain(theirs) in plain(mine) else TWO_DEVICES.format(mine=mine, theirs=theirs)


def check(mine, is_cpu):
    """Says the sentence, if there is one, and ends where nothing can be compared."""
    if torch is None:
        return
    is_wrong, text = apart(mine, is_cpu, torch.cuda.get_device_name() if DEVICE == "cuda" else None)
    if is_wrong:
        sys.exit(text)
    if text:
        print(f"warning: {text}", file=sys.stderr)


def is_on_cpu(name):
    return bool(re.search("llvmpipe|swiftshader", name, re.IGNORECASE))


def adapter_of(danlu, adapter):
    """The name of the adapter that the program takes."""
    done = subprocess.run([danlu, "doctor", "--tuning", "--json", *adapter], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("there is no adapter to measure")
    return json.loads(done.stdout)["here"]["adapter"]["name"]


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
    a, b = (torch.randn(n, n, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return burst(lambda: torch.mm(a, b, out=out))


def attention(seq, dtype):
    """Causal, nine heads of 64, forward and backward."""
    like = {"device": DEVICE, "dtype": getattr(torch, dtype), "requires_grad": True}
    q, k, v = (torch.randn(1, 9, seq, 64, **like) for _ in range(3))

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


def train_step(preset, batch, seq, is_mixed, is_compiled):
    """Seconds of forward, backward, clipping and AdamW, and the most bytes that they took."""
    net = model(preset)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=DEVICE == "cuda")
    tokens = torch.randint(net.config.vocab_size, (batch, seq), device=DEVICE)
    forward = torch.compile(net) if is_compiled else net
    scaler = torch.amp.GradScaler(DEVICE, enabled=is_mixed)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.float16, enabled=is_mixed):
            loss = forward(input_ids=tokens, labels=tokens).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median(run, 2.0)
    return seconds, torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def decode(preset, dtype, context):
    """Seconds of one token behind context - 1 others."""
    from transformers import DynamicCache

    net = model(preset).to(getattr(torch, dtype)).eval()
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
    if torch is None:
        return None
    try:
        return run(*args)
    except Exception as e:  # a peer that fails is a row without figures
        reason = (str(e).splitlines() or [""])[0]
        print(f"PyTorch: {run.__name__}{args}: {type(e).__name__}: {reason}", file=sys.stderr)
        return None
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        if hasattr(torch, "_dynamo"):
            torch._dynamo.reset()


def meganeura(program, seq):
    """Median seconds of meganeura's step of SmolLM2-135M on one sequence."""
    done = subprocess.run([program, str(seq)], capture_output=True, text=True, timeout=600)
    found = re.search(r"median: ([0-9.]+) ?ms", done.stdout + done.stderr)
    if done.returncode != 0 or not found:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"exit code {done.returncode}, and no median; it said: {said}")
    return float(found[1]) / 1e3


def planned_bytes(danlu, preset, batch, seq, is_mixed):
    """Bytes of a step that updates each layer as soon as its gradients are there, by its plan; None and a line where there is none."""
    command = [danlu, "plan", "--config", preset, "--batch", str(batch), "--seq", str(seq), "--update", "layer", "--json"]
    done = subprocess.run([*command, *(["--precision", "mixed"] if is_mixed else [])], stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["answer"]["step_bytes"] if done.returncode == 0 else None


def start(danlu, adapter, preset, folder, steps, until):
    """What a training run of so many steps tells, that it is ready and what `until` of them came to, with the seconds since its start."""
    # fmt: off
    command = [danlu, "train", "--config", preset, "--batch", "1", "--seq", "128", "--steps", str(steps), "--eval-every", "100",
               "--log-format", "json", "--out", str(Path(folder) / f"{steps} steps"), *adapter]
    # fmt: on
    environment = os.environ | {"DANLU_CACHE": str(Path(folder) / "cache")}
    began, told, done = time.perf_counter(), [], 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            event = json.loads(line)
            # What was told before it heard that it is killed does not count.
            if done < until and event["event"] in ("ready", "step"):
                told.append((time.perf_counter() - began, event))
                done += event["event"] == "step"
            if done == until:
                process.kill()
    if done < until:
        raise RuntimeError(f"{' '.join(command)} did not take {until} steps (exit code {process.returncode})")
    return told


def tried_meganeura(program, seq):
    """The same, or None and a line that says why not."""
    try:
        return meganeura(program, seq)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as e:
        print(f"meganeura: {type(e).__name__}: {e}", file=sys.stderr)
        return None


def second_start(danlu, adapter, preset):
    """Seconds of a second start to the end of its first step, less those spent on weights, and less a step as it is later on."""
    with tempfile.TemporaryDirectory() as folder:
        # The last of a run is told at once after the one before it.
        *_, (before, _), (after, _) = start(danlu, adapter, preset, folder, 4, 3)
        (_, ready), (end, _) = start(danlu, adapter, preset, folder, 1, 1)
        return max(end - ready["weights_seconds"] - (after - before), 0.0)


class Table:
    def __init__(self, entries):
        self.entries, self.rows, self.missed, self.unreached = entries, [], [], []

    def mine(self, name):
        """Danlu's median and its part of the roof, if it was measured."""
        entry = self.entries.get(name)
        return (entry["seconds"]["median"], entry["fraction"]) if entry else (None, None)

    def add(self, what, mine, theirs, least=None, fraction=None, unit="ms", factor=1e3):
        """One comparison of seconds or bytes; None where one side has no figure. `least`: the ratio to reach."""
        figure = lambda x: "–" if x is None else f"{x * factor:.2f} {unit}"
        ratio = theirs / mine if mine and theirs else None
        reach = "" if least is None else f"≥ {least:.2f}×"
        self.row(what, figure(mine), figure(theirs), ratio and f"{ratio:.2f}", fraction, reach, ratio, least)

    def row(self, what, mine, theirs, ratio, fraction, reach, value, least):
        of_roof = "–" if fraction is None else f"{fraction * 100:.0f} %"
        verdict = "" if least is None else "–" if value is None else "yes" if value >= least else "no"
        self.rows.append((what, mine, theirs, ratio or "–", of_roof, reach, verdict))
        if mine == "–":
            self.missed.append(what)
        if verdict == "no":
            self.unreached.append(f"{what} ({ratio or mine}; {reach})")

    def print(self):
        rows = [("what", "Danlu", "peer", "ratio", "of roof", "reach", "reached"), *self.rows]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        for i, row in enumerate(rows):
            print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")
            if i == 0:
                print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def compare(entries, is_cpu, quick, eager_only, danlu, adapter, peer, other):
    """All that docs/benchmarks.md lists, of Danlu's entries by name; `peer` runs PyTorch, and `other` meganeura where it is."""
    small = quick or is_cpu
    # On a CPU PyTorch is left out where it takes minutes.
    slow = quick or DEVICE == "cpu"
    table = Table(entries)
    for n in [256] if quick else [1024] if small else [4096, 8192]:
        for dtype, suffix, least in [("float32", "", 0.8 if n == 4096 else None), ("float16", " f16", 0.5)]:
            mine, fraction = table.mine(f"cube: matmul {n}×{n}×{n} nn{suffix}")
            theirs = None if slow and dtype == "float16" else peer(matmul, n, dtype)
            table.add(f"matmul {dtype} {n}³", mine, theirs, None if small else least, fraction)
    seq = 128 if quick else 1024
    for case, dtype in [("attention", "float32"), ("attention mixed", "float16")]:
        found = [e for name, e in entries.items() if name.startswith(f"{case}: attention")]
        if any(":passes" in e["kernel"] for e in found):
            print(f"left out: {case}, whose kernels on a CPU are each of one block of many; `danlu bench \"attention step\"` has the whole")
            continue
        parts = [e["seconds"]["median"] for e in found]
        theirs = None if slow and dtype == "float16" else peer(attention, seq, dtype)
        table.add(f"attention {dtype} forward and backward, T {seq}", sum(parts) or None, theirs)
    preset = "story-1m" if quick else "smollm2-135m"
    sizes = [(2, 32)] if quick else [(1, 128)] if small else [(1, 128), (8, 1024)]
    for batch, seq in sizes:
        for is_mixed in (False, True):
            name = f"train step {preset}{' mixed' if is_mixed else ''} {batch}×{seq}"
            mine, fraction = table.mine(name)
            eager = None if slow and is_mixed else peer(train_step, preset, batch, seq, is_mixed, False)
            table.add(f"{name}, eager", mine, eager and eager[0], 1.0 if (batch, seq) == (1, 128) and not small else None, fraction)
            if not slow and not eager_only:
                compiled = peer(train_step, preset, batch, seq, is_mixed, True)
                table.add(f"{name}, compiled", mine, compiled and compiled[0], 0.6 if batch == 8 else None, fraction)
            if other and (batch, seq, is_mixed) == (1, 128, False):
                table.add(f"{name}, meganeura", mine, other(seq), None if small else 1.0, fraction)
            held = table.entries.get(name, {}).get("device_bytes")
            table.add(f"{name}, bytes", held, eager and eager[1], None if batch == 1 else 1.25, None, "MiB", 2**-20)
            if batch == 1 and danlu and not quick:
                # Parameters and moments alone are 0.9 of PyTorch's bytes where there are few activations.
                least = planned_bytes(danlu, preset, batch, seq, is_mixed)
                table.add(f"{name}, bytes, --update layer", least, eager and eager[1], 1.25, None, "MiB", 2**-20)
    decodes = [("story-1m", "f32", 512)] if quick else [("smollm2-135m", t, 1024) for t in ("f32", "bf16")]
    decodes += [] if small else [("llama-3.2-1b", "bf16", 1024)]
    for preset_, dtype, context in decodes:
        found = [n for n in entries if re.fullmatch(rf"decode {preset_} {dtype} 1 at \d+", n)]
        name = found[0] if found else f"decode {preset_} {dtype} 1 at {context}"
        mine, fraction = table.mine(name)
        theirs = peer(decode, preset_, {"f32": "float32", "bf16": "bfloat16"}[dtype], int(name.split()[-1]))
        table.add(f"{name}, a token", mine, theirs, None, fraction)
        if not small:
            table.row(f"{name}, bandwidth", f"{(fraction or 0) * 100:.0f} %", "–", None, fraction, "≥ 60 %", fraction, 0.6)
    if danlu:
        try:
            seconds = second_start(danlu, adapter, preset)
            reached = 2.0 / max(seconds, 1e-9)
            table.row(f"second start to first step, {preset}", f"{seconds:.2f} s", "–", None, None, "≤ 2 s", reached, 1.0)
        except Exception as e:
            print(f"second start: {type(e).__name__}: {e}", file=sys.stderr)
            table.add(f"second start to first step, {preset}", None, None)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="*", help="what `danlu bench --json` said, in one file or in several")
    parser.add_argument("--check", action="store_true", help="only ask whether both compute on the same device; wants --danlu")
    parser.add_argument("--quick", action="store_true", help="the sizes of `danlu bench --quick`")
    parser.add_argument("--eager", action="store_true", help="leave out what PyTorch compiles")
    parser.add_argument("--danlu", help="the program, whose second start is timed")
    parser.add_argument("--meganeura", help="meganeura's example smollm2_train_bench, built by hand")
    parser.add_argument("--adapter", help="the adapter that it takes")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    adapter = ["--adapter", args.adapter] if args.adapter else []
    if args.check:
        if not args.danlu:
            parser.error("--check asks the program that --danlu names")
        name = adapter_of(args.danlu, adapter)
        check(name, is_on_cpu(name))
        return
    reports = []
    for path in args.reports:
        try:
            reports.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
    if not reports:
        sys.exit("there is no report: every `danlu bench` failed")
    if torch:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        theirs = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        theirs = f"PyTorch {torch.__version__} on {theirs}; TF32 off; a ratio above 1 is Danlu's"
    else:
        theirs = f"PyTorch is not installed here ({missing}), so its column is empty: pip install torch transformers"
    entries = {e["name"]: e for report in reports for e in report["entries"]}
    name = reports[0]["adapter"]["name"]
    is_cpu = reports[0]["is_cpu"]
    check(name, is_cpu)
    other = None
    if args.meganeura and not args.quick:
        other = lambda seq: tried_meganeura(args.meganeura, seq)
    else:
        why = "its model is not among the small ones" if args.meganeura else "no MEGANEURA=FILE names its smollm2_train_bench"
        print(f"left out: meganeura ({why})")
    if is_cpu:
        print(f"left out: sizes for GPUs and what is to be reached there ({name} computes on the CPU)")
    table = compare(entries, is_cpu, args.quick, args.eager, args.danlu, adapter, tried, other)
    print(f"Danlu on {name}; {theirs}")
    table.print()
    for report in reports:
        for line in [*report["skipped"], *report.get("failed", [])]:
            print(f"left out: {line}")
    if table.missed:
        print(f"without a figure of Danlu's: {'; '.join(table.missed)}", file=sys.stderr)
    if table.unreached:
        print(f"not reached: {'; '.join(table.unreached)}", file=sys.stderr)
    sys.exit(1 if table.missed or table.unreached else 0)


if __name__ == "__main__":
    main()
