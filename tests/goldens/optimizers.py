"""Writes optimizers.json beside this file: ten steps of Muon and of SGD on the model `gqa`, in float64.

    pip install torch
    python3 tests/goldens/optimizers.py

The optimizers are torch's own, torch.optim.Muon with adjust_lr_fn = "match_rms_adamw" and torch.optim.SGD, on llama64's
LLaMA with the weights and batches of make.py's `gqa`; embedding, output and norms are left to torch.optim.AdamW where Muon
has the rest. torch.optim.Muon orthogonalises in bfloat16: here its module is given float64 in that name's place, all else
is its code. Schedule, clipping and weight decay are make.py's.
"""

import json
import pathlib
import sys
import types

import torch
import torch.optim._muon
from safetensors.torch import load_file

sys.dont_write_bytecode = True
import llama64  # noqa: E402
import make  # noqa: E402

HERE = pathlib.Path(__file__).parent
KEPT = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight", "model.norm.weight"]

torch.optim._muon.torch = types.SimpleNamespace(**{**vars(torch), "bfloat16": torch.float64})


def groups(params):
    decayed = [p for p in params if p.dim() == 2]
    others = [p for p in params if p.dim() != 2]
    return [g for g in ({"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}) if g["params"]]


def muon(params):
    inner = [p for n, p in params.items() if p.dim() == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for p in params.values() if all(p is not q for q in inner)]
    return [torch.optim.Muon(inner, lr=1e-2, weight_decay=0.1, momentum=0.95, nesterov=True,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups(rest), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, foreach=False)]


def sgd(momentum, nesterov):
    return lambda params: [torch.optim.SGD(groups(list(params.values())), lr=1e-2, momentum=momentum, nesterov=nesterov,
                                           foreach=False)]


def train(optimizers_of):
    config = make.plain_config(json.loads((HERE / "gqa/config.json").read_text()))
    params = {n: p.double().requires_grad_() for n, p in load_file(HERE / "gqa/model.safetensors").items()}
    batches = load_file(HERE / "gqa/golden.safetensors")["adamw.batches"].long()
    optimizers = optimizers_of(params)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = make.schedule(step, 1e-2, 3, len(batches))
        loss = make.loss_of(llama64.logits(params, config, batch[:, :-1]), batch[:, 1:])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 1.0, foreach=False).item())
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    final = {n: [round(x, 12) for x in params[n].detach().flatten().tolist()] for n in KEPT}
    return {"losses": losses, "grad_norms": norms, "final": final}


def main():
    rows = {"muon": train(muon), "sgd": train(sgd(0.0, False)), "momentum": train(sgd(0.95, True))}
    for name, row in rows.items():
        print(name, row["losses"][0], row["losses"][-1])
    (HERE / "optimizers.json").write_text(json.dumps(rows) + "\n")


main()
