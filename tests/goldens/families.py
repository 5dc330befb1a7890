"""Writes the goldens of the model families beside this file, in families/: one tiny random checkpoint a row.

    pip install torch transformers
    python3 tests/goldens/families.py            # writes tests/goldens/families/*
    python3 tests/goldens/families.py --check    # computes them again and prints the largest differences from the files

Each folder holds config.json and model.safetensors as the family's own library writes them (transformers' save_pretrained;
for Baichuan, which it lacks, baichuan.py), and golden.safetensors:

    tokens, targets [B, T] i32, logits [B, T, V], logprobs [B, T] of the targets, loss [] (the mean), grad.<p> of the loss
    for every parameter by its canonical name, all float32;
    distance.<t> [] float64: how far that float32 tensor is from the same computed in float64 by family64.py, at most.

rope.json lists what transformers makes of several configurations: the angles of one position (float32) and the factor of
cosines and sines, for a text of `planned` tokens.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

sys.dont_write_bytecode = True
import baichuan  # noqa: E402 (the line above keeps __pycache__ out of the tree)
import family64  # noqa: E402

HERE = pathlib.Path(__file__).parent
SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
ONE = SIZES | {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
PHI = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "original_max_position_embeddings": 16}
# 8 of 16 elements turn: four pairs.
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 3.5, 4.0],
        "original_max_position_embeddings": 16}
SMALL = {"intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2}


def rope(kind, theta=10000.0, **rest):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | rest}


# Row: class, configuration, T. `v4` writes config.json with the keys of transformers 4.
ROWS = {
    "llama": ("Llama", SIZES | rope("default", 5e5) | {"attention_bias": True, "mlp_bias": True}, 12),
    "llama3": ("Llama", ONE | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=128), 12),
    "linear": ("Llama", ONE | rope("linear", factor=2.5), 12),
    "dynamic": ("Llama", ONE | rope("dynamic", factor=2.0) | {"max_position_embeddings": 8}, 12),
    "yarn": ("Llama", ONE | rope("yarn", factor=4.0, original_max_position_embeddings=32), 12),
    "mistral": ("Mistral", SIZES | rope("default") | {"sliding_window": 5, "head_dim": 12}, 14),
    "mixtral": ("Mixtral", SIZES | rope("default", 1e6) | SMALL, 12),
    "qwen2": ("Qwen2", SIZES | rope("default", 1e6) | {"use_sliding_window": True, "sliding_window": 4,
                                                       "max_window_layers": 1}, 12),
    "qwen3": ("Qwen3", SIZES | rope("default", 1e6) | {"head_dim": 12, "tie_word_embeddings": True}, 12),
    "qwen3-moe": ("Qwen3Moe", SIZES | rope("default", 1e6) | {
        "head_dim": 8, "moe_intermediate_size": 8, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True,
        "mlp_only_layers": [1]}, 12),
    "smollm3": ("SmolLM3", SIZES | rope("default", 2e6) | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1],
                                                           "vocab_size": 32, "tie_word_embeddings": True}, 12),
    "phi3": ("Phi3", SIZES | PHI | {"rope_parameters": LONG}, 16),
    "phi3-long": ("Phi3", SIZES | PHI | {"rope_parameters": LONG, "sliding_window": 7}, 20),
    "olmo2": ("Olmo2", SIZES | rope("default", 5e5), 12),
    "baichuan-7b": ("Baichuan", {}, 12),
    "baichuan-13b": ("Baichuan", {"alibi": True}, 12),
    "baichuan2-7b": ("Baichuan", {"unit_head": True}, 12),
    "baichuan2-13b": ("Baichuan", {"alibi": True, "unit_head": True}, 12),
    # Experts in every layer, as a GGUF file can say them (gguf_moe.py).
    "qwen3-moe-all": ("Qwen3Moe", SIZES | rope("default", 1e6) | {
        "num_hidden_layers": 1, "head_dim": 8, "moe_intermediate_size": 8, "num_experts": 5, "num_experts_per_tok": 2,
        "norm_topk_prob": True}, 12),
}
# Configuration and lengths of the text.
FREQUENCIES = [
    (rope("default", 10000.0) | {"head_dim": 64}, [100]),
    (rope("linear", 10000.0, factor=4.0) | {"head_dim": 32}, [100]),
    (rope("dynamic", 10000.0, factor=2.0) | {"head_dim": 32, "max_position_embeddings": 2048}, [100, 2048, 2049, 6000]),
    (rope("llama3", 5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
     | {"head_dim": 64, "max_position_embeddings": 131072}, [100]),
    (rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=32768)
     | {"head_dim": 128, "max_position_embeddings": 32768}, [100]),
    (rope("yarn", 1e4, factor=8.0, original_max_position_embeddings=512, beta_fast=16.0, beta_slow=2.0, truncate=False,
          mscale=0.8, mscale_all_dim=0.4) | {"head_dim": 32, "max_position_embeddings": 4096}, [100]),
    (rope("yarn", 1e4, factor=2.0, original_max_position_embeddings=64, attention_factor=1.25)
     | {"head_dim": 16, "max_position_embeddings": 128}, [100]),
    ({"rope_parameters": LONG, "head_dim": 16, "max_position_embeddings": 64}, [16, 17]),
    ({"rope_parameters": LONG | {"attention_factor": 1.5, "partial_rotary_factor": 1.0}, "head_dim": 8}, [16]),
]
VERSION_4 = ["llama3", "dynamic", "mistral", "qwen2", "phi3"]


def baichuan_config(switches):
    """A config.json as Baichuan's are: which of the four it is follows from what keys there are."""
    heads = 5 if "alibi" in switches else 4
    config = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "vocab_size": 48, "hidden_size": 8 * heads,
              "intermediate_size": 24, "num_hidden_layers": 6 - heads, "num_attention_heads": heads, "rms_norm_eps": 1e-6,
              "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
              "model_max_length": 64}
    if "unit_head" in switches:
        config["z_loss_weight"] = 0
    if "alibi" not in switches:
        config["max_position_embeddings"] = 64
    if not switches:
        config["architectures"] = ["BaiChuanForCausalLM"]
    return config


def randomise(model, seed):
    """Matrices N(0, 0.15^2), biases N(0, 0.1^2), gains 1 + N(0, 0.1^2), so that ignoring one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * 0.15)
            else:
                parameter.copy_(noise * 0.1 + (0 if name.endswith("bias") else 1))


def new_model(row, seed):
    """(model, function from tokens to logits, all keys that family64 reads)."""
    kind, config, _ = ROWS[row]
    if kind == "Baichuan":
        config = baichuan_config(config)
        model = baichuan.Baichuan(config)
        forward = model
        full = config | {"num_key_value_heads": config["num_attention_heads"], "max_position_embeddings": 64,
                         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        full |= {"alibi": "alibi" in ROWS[row][1], "unit_head": "unit_head" in ROWS[row][1]}
    else:
        config = getattr(transformers, kind + "Config")(**config, attn_implementation="eager")
        model = getattr(transformers, kind + "ForCausalLM")(config).float().eval()
        full = config.to_dict() | {"alibi": False, "unit_head": False}

        def forward(tokens):
            return model(input_ids=tokens, use_cache=False).logits

    randomise(model, seed)
    full.setdefault("head_dim", None)
    full["head_dim"] = full["head_dim"] or full["hidden_size"] // full["num_attention_heads"]
    full["norm_topk_prob"] = full.get("norm_topk_prob", True)
    full["post_norm"] = kind == "Olmo2"
    types, window = full.get("layer_types"), full.get("sliding_window")
    turned = full.get("no_rope_layers") or [not full["alibi"]] * full["num_hidden_layers"]
    layers = range(full["num_hidden_layers"])
    full["layers"] = [{"window": window if not types or types[i].startswith("sliding") else None,
                       "rotary": bool(turned[i])} for i in layers]
    return model, forward, full


def canonical(named, config):
    """Tensors of a model by canonical name: packed ones in parts, experts stacked."""
    C, F_ = config["head_dim"], config["intermediate_size"]
    q, k = config["num_attention_heads"] * C, config["num_key_value_heads"] * C
    packs = {"W_pack": ((q, "q_proj"), (k, "k_proj"), (k, "v_proj")),
             "qkv_proj": ((q, "q_proj"), (k, "k_proj"), (k, "v_proj")),
             "gate_up_proj": ((F_, "gate_proj"), (F_, "up_proj"))}
    out = {}
    for name, tensor in named.items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            out[stem + "gate_proj.weight"], out[stem + "up_proj.weight"] = tensor.chunk(2, dim=1)
        elif name.endswith("experts.down_proj"):
            out[name + ".weight"] = tensor
        else:
            pack = next((pack for pack in packs if f".{pack}." in name), None)
            parts = packs[pack] if pack else ((tensor.shape[0], None),)
            for part, (_, new) in zip(tensor.split([rows for rows, _ in parts]), parts):
                out[name.replace(pack, new) if pack else name] = part
    return {name: tensor.contiguous() for name, tensor in out.items()}


def measure(params, forward, tokens, targets):
    """logits, logprobs, loss and the gradient of every parameter."""
    logits = forward(tokens)
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    grads = torch.autograd.grad(-logprobs.mean(), list(params.values()))
    numbers = {"logits": logits, "logprobs": logprobs, "loss": -logprobs.mean()}
    return {k: v.detach() for k, v in numbers.items()}, dict(zip(params, grads))


def golden(row, seed):
    model, forward, config = new_model(row, seed)
    T = ROWS[row][2]
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randint(config["vocab_size"], (2, T + 1), generator=generator)
    tokens, targets = rows[:, :-1], rows[:, 1:]
    own = dict(model.named_parameters())
    ours, grads = measure(own, forward, tokens, targets)
    ours |= {f"grad.{name}": grad for name, grad in canonical(grads, config).items()}

    params = {name: p.detach().double().requires_grad_() for name, p in canonical(own, config).items()}
    exact, grads = measure(params, lambda tokens: family64.logits(params, config, tokens), tokens, targets)
    exact |= {f"grad.{name}": grad for name, grad in grads.items()}
    assert exact.keys() == ours.keys(), exact.keys() ^ ours.keys()
    out = {"tokens": tokens.to(torch.int32), "targets": targets.to(torch.int32)} | ours
    for name, tensor in ours.items():
        far = (tensor.double() - exact[name]).abs().max()
        # Angles in float32 are good to 1e-7 of the position, everything else to a few roundings.
        assert far <= 2e-5 * exact[name].abs().max(), f"{row}: {name} is {far:.1e} from family64"
        out["distance." + name] = far
    worst = max(((out["distance." + n] / exact[n].abs().max()).item(), n) for n in ours)
    print(f"{row}: float32 is at most {worst[0]:.1e} from float64 ({worst[1]})")
    return model, {name: tensor.contiguous() for name, tensor in out.items()}


def to_version_4(config):
    """The same keys as transformers 4 wrote them."""
    parameters = config.pop("rope_parameters")
    theta, share = parameters.pop("rope_theta"), parameters.pop("partial_rotary_factor", None)
    config |= {"rope_theta": theta, "torch_dtype": config.pop("dtype", "float32")}
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    if share is not None:
        config["partial_rotary_factor"] = share
    if config["architectures"] == ["Phi3ForCausalLM"]:
        parameters["type"] = parameters.pop("rope_type")
    config.pop("layer_types", None)
    return config


def write(row, model, folder):
    """config.json and model.safetensors as the family's library writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    if ROWS[row][0] == "Baichuan":
        config = baichuan_config(ROWS[row][1])
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        with tempfile.TemporaryDirectory() as made:
            model.save_pretrained(made)
            shutil.copy(pathlib.Path(made) / "model.safetensors", folder)
            config = json.loads((pathlib.Path(made) / "config.json").read_text())
        config.pop("transformers_version")
        if row in VERSION_4:
            config = to_version_4(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def rope_numbers():
    """transformers' own frequencies for the rows of FREQUENCIES."""
    rows = []
    for keys, lengths in FREQUENCIES:
        for planned in lengths:
            config = transformers.LlamaConfig(**(SIZES | {"num_attention_heads": 2} | keys))
            kind = config.rope_parameters["rope_type"]
            if kind == "default":
                make = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
            else:
                make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
            inverse, factor = make(config) if kind == "default" else make(config, seq_len=planned)
            written = {key: value for key, value in config.to_dict().items() if value is not None}
            written = {"architectures": ["LlamaForCausalLM"]} | {key: written[key] for key in sorted(written)
                                                                  if key in SIZES or key in keys or key == "head_dim"}
            rows.append({"config": written, "planned": planned, "inverse": inverse.tolist(), "attention": factor})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for seed, row in enumerate(ROWS, start=100):
        model, out = golden(row, seed)
        folder = HERE / "families" / row
        if check:
            kept = load_file(folder / "golden.safetensors")
            assert kept.keys() == out.keys(), f"{row}: the file holds other tensors than this script makes"
            worst = max(((out[k].double() - kept[k].double()).abs().max().item(), k) for k in kept)
            print(f"{row}: largest difference from the file {worst[0]:.1e} ({worst[1]})")
            continue
        write(row, model, folder)
        save_file(out, folder / "golden.safetensors", metadata={"format": "pt"})
        (folder / "golden.safetensors").chmod(0o644)
    text = "[\n" + ",\n".join(json.dumps(row) for row in rope_numbers()) + "\n]\n"
    if check:
        print("rope.json:", "the same" if (HERE / "rope.json").read_text() == text else "DIFFERS")
    else:
        (HERE / "rope.json").write_text(text)


if __name__ == "__main__":
    main()
