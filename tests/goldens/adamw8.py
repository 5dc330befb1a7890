"""Writes adamw8.json beside this file: ten steps of AdamW with 8-bit moments by bitsandbytes' block-wise quantisation.

    pip install torch bitsandbytes
    python3 tests/goldens/adamw8.py

bitsandbytes has its 8-bit optimizers on GPUs only; its maps are taken from it. What its kernels do with them
(csrc/kernels.cu, kOptimizerStatic8bit2StateBlockwise) is written out here: moments are dequantised, move in float32, update
the parameters, and are quantised again: the nearest code of their share of the block's largest magnitude. (Its
quantize_blockwise on the CPU looks codes up in a coarse table, which tells small numbers apart less well.)
"""

import json
import pathlib

import bitsandbytes.functional as bnb
import torch

BLOCK, STEPS, N = 256, 10, 300
RATE, BETA1, BETA2, EPSILON, DECAY = 0.01, 0.9, 0.95, 1e-8, 0.1


def quantise(x, code):
    absmax = torch.stack([block.abs().max() for block in x.split(BLOCK)])
    share = x / absmax.clamp(min=1e-38).repeat_interleave(BLOCK)[:N]
    return torch.bucketize(share, (code[1:] + code[:-1]) / 2), absmax


def dequantise(q, absmax, code):
    return code[q.long()] * absmax.repeat_interleave(BLOCK)[:N]


def main():
    generator = torch.Generator().manual_seed(3)
    signed, unsigned = bnb.create_dynamic_map(True), bnb.create_dynamic_map(False)
    p = torch.randn(N, generator=generator)
    gradients = torch.randn(STEPS, N, generator=generator) * torch.logspace(-3, 0, N)[torch.randperm(N, generator=generator)]
    first = p.clone()
    zero = torch.zeros(N)
    (m, m_max), (v, v_max) = quantise(zero, signed), quantise(zero, unsigned)
    for step, g in enumerate(gradients, 1):
        m32 = dequantise(m, m_max, signed) * BETA1 + (1 - BETA1) * g
        v32 = dequantise(v, v_max, unsigned) * BETA2 + (1 - BETA2) * g * g
        p = p * (1 - RATE * DECAY)
        p = p - RATE / (1 - BETA1**step) * m32 / ((v32 / (1 - BETA2**step)).sqrt() + EPSILON)
        (m, m_max), (v, v_max) = quantise(m32, signed), quantise(v32, unsigned)
    out = {"signed": signed, "unsigned": unsigned, "first": first, "gradients": gradients.flatten(), "p": p, "m": m, "v": v,
           "m_max": m_max, "v_max": v_max}
    text = json.dumps({k: t.tolist() for k, t in out.items()})
    (pathlib.Path(__file__).parent / "adamw8.json").write_text(text + "\n")


main()
