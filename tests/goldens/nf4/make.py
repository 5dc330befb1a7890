"""Writes golden.safetensors beside it: random weights, and what bitsandbytes makes of them in NF4 with double quantisation.

    pip install bitsandbytes torch safetensors
    python3 tests/goldens/nf4/make.py
"""

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(5)
# More scales than share a scale, of several sizes, and a block of zeros.
weights = torch.randn(17, 1024, generator=generator) * torch.rand(17, 1, generator=generator)
weights[3, 64:128] = 0.0
weights = weights.half()
packed, state = quantize_4bit(weights.float(), blocksize=64, compress_statistics=True, quant_type="nf4")
save_file(
    {
        "weights": weights,
        "quants": packed.reshape(-1),
        "mean": state.offset.reshape(1),
        "scales": dequantize_blockwise(state.absmax, state.state2) + state.offset,
        "code": state.state2.code,
        "values": dequantize_4bit(packed, state),
    },
    Path(__file__).with_name("golden.safetensors"),
)
