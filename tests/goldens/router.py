"""Writes router.json beside this file: the losses of a router by transformers and PyTorch, with their gradients.

    python3 tests/goldens/router.py

For two layers of logits [R,E]: `balance` is transformers' load_balancing_loss_func of both with `choices` experts a row,
`z` the mean over all rows of the square of logsumexp (ST-MoE, equation 5), each in float32, with its gradient towards the
logits of either layer.
"""

import json
import pathlib

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def main():
    generator = torch.Generator().manual_seed(5)
    rows, experts, choices = 11, 6, 2
    layers = [torch.randn(rows, experts, generator=generator).mul_(2).requires_grad_() for _ in range(2)]
    losses = {
        "balance": load_balancing_loss_func(tuple(layers), experts, choices),
        "z": torch.stack([layer.logsumexp(-1).square() for layer in layers]).mean(),
    }
    out = {"rows": rows, "experts": experts, "choices": choices, "logits": [l.detach().flatten().tolist() for l in layers]}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, layers)
        out[name] = {"loss": loss.item(), "gradients": [g.flatten().tolist() for g in grads]}
    (pathlib.Path(__file__).parent / "router.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
