"""Writes golden.safetensors beside it: what PyTorch says of preference pairs for the model of `../gqa`, in float64.

    pip install torch safetensors
    python3 tests/goldens/dpo/make.py            # write it anew
    python3 tests/goldens/dpo/make.py --check    # compute it again, print the largest difference from the file

Direct preference optimisation (Rafailov et al., 2023, equation 7), as TRL's DPOTrainer has it with loss_type "sigmoid": with
pi and ref the sums of the log-probabilities of an answer's tokens, -log sigmoid(beta * ((pi_c - pi_r) - (ref_c - ref_r))), its
mean over the pairs, and the rewards beta * (pi - ref). The reference is the same model with other numbers. Beside it
`smoothed`, with TRL's label_smoothing of 0.1, and `ipo`, (((pi_c - pi_r) - (ref_c - ref_r)) - 1 / (2 beta))**2 of sums over
tokens (Azar et al., 2023, equation 17).

`tokens`, `targets` [6,11]: rows 2n and 2n + 1 are the better and the worse answer, -100 where a token does not count.
`log_probs`, `reference`, `rewards` [6]; of each loss `<loss>` [1], and `grad.<loss>.<p>` as float32, of `smoothed` and `ipo`
those of gains and of the last layer's query projection.
"""

import argparse
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import llama64  # noqa: E402
import make  # noqa: E402

BETA = 0.3
SMOOTHING = 0.1
# Of each row: where its answer begins, and where it ends.
ANSWERS = [(4, 11), (4, 8), (2, 6), (2, 11), (7, 9), (7, 10)]


def sums(params, config, tokens, targets):
    log_probs = llama64.logits(params, config, tokens).log_softmax(-1)
    counted = targets != -100
    of_targets = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (of_targets * counted).sum(-1)


def numbers():
    generator = torch.Generator().manual_seed(11)
    config = make.plain_config(make.CONFIGS["gqa"])
    weights = {n: w.double() for n, w in load_file(HERE.parent / "gqa" / "model.safetensors").items()}
    reference = {n: w * (1 + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)) for n, w in weights.items()}
    params = {n: w.clone().requires_grad_() for n, w in weights.items()}
    rows, length = len(ANSWERS), 11
    text = torch.randint(0, config["vocab_size"], (rows, length + 1), generator=generator)
    for row, (begin, _) in enumerate(ANSWERS):
        # Both answers of a pair have one question.
        text[row, : begin + 1] = text[row - row % 2, : begin + 1]
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].clone()
    for row, (begin, end) in enumerate(ANSWERS):
        targets[row, :begin] = -100
        targets[row, end:] = -100
    pi = sums(params, config, tokens, targets)
    with torch.no_grad():
        ref = sums(reference, config, tokens, targets)
    rewards = BETA * (pi - ref)
    margins = rewards[0::2] - rewards[1::2]
    losses = {
        "loss": -F.logsigmoid(margins).mean(),
        "smoothed": (-(1 - SMOOTHING) * F.logsigmoid(margins) - SMOOTHING * F.logsigmoid(-margins)).mean(),
        "ipo": ((margins / BETA - 1 / (2 * BETA)) ** 2).mean(),
    }
    out = {
        "tokens": tokens.int(),
        "targets": targets.int(),
        "beta": torch.tensor([BETA], dtype=torch.float64),
        "log_probs": pi.detach(),
        "reference": ref,
        "rewards": rewards.detach(),
    }
    for kind, loss in losses.items():
        out[kind] = loss.detach().reshape(1)
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        some = {n: g.float() for n, g in zip(params, grads) if kind == "loss" or g.dim() == 1 or "1.self_attn.q_proj" in n}
        out |= {f"grad.{kind}.{n}": g for n, g in some.items()}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    file, out = HERE / "golden.safetensors", {n: t.contiguous() for n, t in numbers().items()}
    if check:
        kept = load_file(file)
        assert kept.keys() == out.keys()
        print(max(((out[k] - kept[k]).abs().max().item(), k) for k in kept))
    else:
        save_file(out, file)
        file.chmod(0o644)
        print({k: out[k].tolist() for k in ("log_probs", "reference", "rewards", "loss", "smoothed", "ipo")})


if __name__ == "__main__":
    main()
