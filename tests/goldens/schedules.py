"""Writes schedules.json beside this file: learning rates of PyTorch's and transformers' schedulers, step by step.

    pip install torch transformers
    python3 tests/goldens/schedules.py

The warm-up is torch's LinearLR from lr / warmup, so that the first step counts; behind it stands, from a step of its own,
the scheduler that is compared with.
"""

import json
import pathlib
import warnings

import torch
from torch.optim import lr_scheduler as torch_schedules
from transformers import optimization

warnings.filterwarnings("ignore")


def after(shape, optimizer, lr, min_lr, steps, decay, restarts):
    floor = min_lr / lr
    if shape == "constant":
        return optimization.get_constant_schedule(optimizer)
    if shape == "linear" and min_lr == 0:
        return optimization.get_linear_schedule_with_warmup(optimizer, 0, steps)
    if shape == "linear":
        return torch_schedules.LinearLR(optimizer, 1.0, floor, steps)
    if shape == "wsd":
        return optimization.get_wsd_schedule(optimizer, num_warmup_steps=0, num_decay_steps=decay,
                                             num_stable_steps=steps - decay, decay_type="linear", min_lr_ratio=floor)
    if restarts and min_lr == 0:
        return optimization.get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 0, steps, restarts + 1)
    if restarts:
        return torch_schedules.CosineAnnealingWarmRestarts(optimizer, steps // (restarts + 1), eta_min=min_lr)
    if min_lr == 0:
        return optimization.get_cosine_schedule_with_warmup(optimizer, 0, steps)
    return optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, 0, steps, min_lr=min_lr)


def rates(shape, lr, min_lr, warmup, total, decay, restarts):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    schedule = after(shape, optimizer, lr, min_lr, total - warmup, decay, restarts)
    if warmup > 1:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        first = torch_schedules.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        second = after(shape, optimizer, lr, min_lr, total - warmup, decay, restarts)
        schedule = torch_schedules.SequentialLR(optimizer, [first, second], [warmup])
    got = []
    for _ in range(total):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return got


def main():
    rows = []
    for shape in ["constant", "linear", "cosine", "wsd"]:
        for lr, min_lr in [(3e-3, 3e-4), (1e-2, 0.0)]:
            for warmup, total, decay, restarts in [(0, 20, 7, 0), (5, 29, 10, 0), (4, 28, 5, 3)]:
                if restarts and shape != "cosine":
                    continue
                row = {"shape": shape, "lr": lr, "min_lr": min_lr, "warmup": warmup, "total": total, "decay": decay,
                       "restarts": restarts}
                rows.append(row | {"rates": rates(**row)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (pathlib.Path(__file__).parent / "schedules.json").write_text(f"[\n{lines}\n]\n")


main()
