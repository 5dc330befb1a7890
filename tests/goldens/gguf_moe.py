"""Writes models with experts as GGUF beside their goldens, with the gguf package: its names of tensors, its writer, experts
stacked and queries and keys of `llama` interleaved as llama.cpp's converter has them; Mixtral in parts, as that writer
splits large models. Nothing of Danlu has a part in it.

    pip install gguf numpy safetensors
    python3 tests/goldens/gguf_moe.py        # writes families/{mixtral,qwen3-moe-all}/stacked*.gguf
"""

import json
import pathlib
import re

import gguf
import numpy
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent / "families"
# Row: architecture, tensors of a part.
ROWS = {"mixtral": ("llama", 9), "qwen3-moe-all": ("qwen3moe", 0)}


def interleave(rows, heads):
    """Halves of each head become pairs of neighbours."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def stack(tensors):
    """Experts' matrices, one tensor for all experts of a layer."""
    out, apart = {}, {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)\.weight", name)
        if found:
            apart.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = tensor
        else:
            out[name] = tensor
    return out | {name: numpy.stack([parts[i] for i in range(len(parts))]) for name, parts in apart.items()}


def write(row, architecture, part):
    folder = HERE / row
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "stacked.gguf", architecture, split_max_tensors=part)
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(row)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if architecture == "llama":
        writer.add_rope_dimension_count(width)
    else:
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for name, tensor in stack(load_file(folder / "model.safetensors")).items():
        if architecture == "llama" and name.endswith((".q_proj.weight", ".k_proj.weight")):
            tensor = interleave(tensor, heads if ".q_proj." in name else keys)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for row, (architecture, part) in ROWS.items():
        write(row, architecture, part)
