#!/usr/bin/env python3
"""The most bytes of tensors that PyTorch holds at a time in a training step, without the device that would hold them.

    python3 scripts/torch_memory.py [--mixed] smollm2-135m 1x128 8x1024

The step of scripts/bench_peers.py (eager, fused AdamW, clipping; f32, or autocast to f16 of a scaled loss) runs on tensors without contents (`FakeTensorMode`) under
PyTorch's own `MemTracker`, which hears of every storage when an operator makes it and when the last reference goes. What
`torch.cuda.max_memory_allocated` would count beside that is missing: the work space of cuBLAS, kernels' scratch, and rounding of
every block to 512 bytes. So the figure is PyTorch's at the least.
"""

import sys
import warnings
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

warnings.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent


def peak(preset, batch, seq, is_mixed):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(ROOT / "models" / preset)
    config.use_cache = False
    with FakeTensorMode():
        net = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
        tokens = torch.zeros(batch, seq, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(net, optimizer, tokens)
        with tracker:
            # The second step has the optimizer's moments from its beginning.
            for step in range(2):
                tracker.reset_mod_stats()
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", torch.float16, enabled=is_mixed):
                    loss = net(input_ids=tokens, labels=tokens).loss
                # What GradScaler keeps beside is a handful of numbers.
                (loss * 65536.0 if is_mixed else loss).backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                del loss
    return {str(k): v for k, v in max(tracker.get_tracker_snapshot("peak").values(), key=lambda d: d["Total"]).items()}


if __name__ == "__main__":
    is_mixed = "--mixed" in sys.argv[1:]
    preset, *shapes = [word for word in sys.argv[1:] if word != "--mixed"]
    for shape in shapes:
        batch, seq = map(int, shape.split("x"))
        parts = peak(preset, batch, seq, is_mixed)
        text = ", ".join(f"{k.split('.')[-1].lower()} {v / 2**20:.0f}" for k, v in parts.items() if v)
        print(f"{preset} {shape}{' mixed' if is_mixed else ''}: {parts['Total']} bytes at the peak; MiB: {text}")
