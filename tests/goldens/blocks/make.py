"""Writes golden.safetensors beside it: random blocks of every quantised dtype, and what the gguf package makes of them.

    pip install gguf safetensors numpy
    python3 tests/goldens/blocks/make.py
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Bytes of a block, and where its f16 scales are.
BLOCKS = {
    T.F16: (2, [0]), T.BF16: (2, [0]),
    T.Q4_0: (18, [0]), T.Q4_1: (20, [0, 2]), T.Q5_0: (22, [0]), T.Q5_1: (24, [0, 2]), T.Q8_0: (34, [0]),
    T.Q2_K: (84, [80, 82]), T.Q3_K: (110, [108]), T.Q4_K: (144, [0, 2]), T.Q5_K: (176, [0, 2]), T.Q6_K: (210, [208]),
}
COUNT = 3

rng = np.random.default_rng(7)
tensors = {}
for dtype, (size, scales) in BLOCKS.items():
    count = COUNT if size > 2 else 32
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        numbers = rng.normal(size=count).astype(np.float32)
        if dtype == T.BF16:
            blocks[:, at : at + 2] = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(count, 2)
        else:
            blocks[:, at : at + 2] = numbers.astype(np.float16).view(np.uint8).reshape(count, 2)
    name = dtype.name.lower()
    tensors[f"{name}.bytes"] = blocks.reshape(-1)
    raw = blocks.view(np.float16) if dtype == T.F16 else blocks
    tensors[f"{name}.values"] = dequantize(raw, dtype).astype(np.float32).reshape(-1)
save_file(tensors, Path(__file__).with_name("golden.safetensors"))
