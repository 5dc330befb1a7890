"""The whole family's forward pass in plain PyTorch, any dtype; the float64 side of the goldens of families.py.

A second statement of each model, independent of transformers: families.py compares the two before it writes either.
Switches follow from what is there: a bias, a norm of queries and keys, experts are used where the parameters hold them.
Parameters have canonical names, those of LLaMA; experts are stacked.

Shapes: B batch, T time, D model width, H heads, K kv heads, C head width, E experts, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F

from llama64 import rms_norm


def frequencies(config, T):
    """(angles of one position [R / 2], factor of cosines and sines) in float64, from a config.json's keys."""
    rope, C = dict(config["rope_parameters"]), config["head_dim"]
    R = int(C * rope.get("partial_rotary_factor", 1.0))
    theta, kind, limit = rope["rope_theta"], rope["rope_type"], config["max_position_embeddings"]
    pairs = torch.arange(0, R, 2, dtype=torch.float64) / R
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings", limit)
    if kind == "dynamic":
        theta *= (factor * max(T, limit) / limit - (factor - 1)) ** (R / (R - 2))
    plain = theta**-pairs
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "llama3":
        turns = original * plain / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * (keep + (1 - keep) / factor), 1.0
    if kind == "yarn":
        def pair(turns):
            return R * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), R - 1)
        divide = ((torch.arange(R // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
        return plain * (divide / factor + 1 - divide), 0.1 * math.log(factor) + 1
    assert kind == "longrope", kind
    divisors = rope["long_factor"] if T > original else rope["short_factor"]
    stretch = limit / original
    scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return plain / torch.tensor(divisors, dtype=torch.float64), scale


def rotate(x, inverse, scale):
    """x [B, H, T, C]: its first R elements turn, element i with element i + R / 2; the rest stays."""
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * inverse
    cos, sin = (scale * angle.cos()).to(x.dtype), (scale * angle.sin()).to(x.dtype)
    half = len(inverse)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def alibi_slopes(H):
    n = 2 ** math.floor(math.log2(H))
    slopes = [2 ** (-8 * i / n) for i in range(1, n + 1)] + [2 ** (-4 * i / n) for i in range(1, 2 * n, 2)]
    return torch.tensor(slopes[:H], dtype=torch.float64)


def linear(x, p, name):
    y = x @ p[name + ".weight"].T
    return y + p[name + ".bias"] if name + ".bias" in p else y


def attention(x, p, config, layer, turn):
    B, T, _ = x.shape
    H, K, C = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    window = layer["window"] or T
    q, k, v = (linear(x, p, f"self_attn.{name}_proj") for name in "qkv")
    if "self_attn.q_norm.weight" in p:
        def norm(y, gain):
            return rms_norm(y.view(B, T, -1, len(gain)), gain, config["rms_norm_eps"])

        q, k = norm(q, p["self_attn.q_norm.weight"]), norm(k, p["self_attn.k_norm.weight"])
    q, k, v = (y.reshape(B, T, -1, C).transpose(1, 2) for y in (q, k, v))
    if layer["rotary"]:
        q, k = rotate(q, *turn), rotate(k, *turn)
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    scores = q @ k.transpose(-1, -2) * C**-0.5
    back = torch.arange(T)[:, None] - torch.arange(T)
    if config["alibi"]:
        scores = scores - (alibi_slopes(H)[:, None, None] * back).to(x.dtype)
    scores = scores.masked_fill((back < 0) | (back >= window), float("-inf"))
    return linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, H * C), p, "self_attn.o_proj")


def mlp(x, p):
    return linear(F.silu(linear(x, p, "mlp.gate_proj")) * linear(x, p, "mlp.up_proj"), p, "mlp.down_proj")


def experts(x, p, config):
    """Every expert on every token, weighted by zero where it was not chosen."""
    probabilities = (x @ p["mlp.gate.weight"].T).softmax(-1)
    chosen, ids = probabilities.topk(config["num_experts_per_tok"], dim=-1)
    if config["norm_topk_prob"]:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    weights = torch.zeros_like(probabilities).scatter(-1, ids, chosen)
    gate, up, down = (p[f"mlp.experts.{name}_proj.weight"] for name in ("gate", "up", "down"))
    inner = F.silu(torch.einsum("btd,efd->btef", x, gate)) * torch.einsum("btd,efd->btef", x, up)
    return torch.einsum("btef,edf,bte->btd", inner, down, weights)


def logits(params, config, tokens):
    """params: canonical name -> tensor. tokens: [B, T] integers. Returns [B, T, V] in the parameters' dtype. Beyond the
    keys of config.json, `layers` says window, rotary of each layer, and `alibi`, `unit_head`, `post_norm` the rest."""
    embedding, eps = params["model.embed_tokens.weight"], config["rms_norm_eps"]
    turn = None if config["alibi"] else frequencies(config, tokens.shape[1])
    x = embedding[tokens]
    for i, layer in enumerate(config["layers"]):
        prefix = f"model.layers.{i}."
        p = {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}

        def block(x, name, f):
            gain = p[name + ".weight"]
            return x + (rms_norm(f(x), gain, eps) if config["post_norm"] else f(rms_norm(x, gain, eps)))

        first, second = ("post_attention", "post_feedforward") if config["post_norm"] else ("input", "post_attention")
        x = block(x, first + "_layernorm", lambda y: attention(y, p, config, layer, turn))
        feed = (lambda y: experts(y, p, config)) if "mlp.gate.weight" in p else lambda y: mlp(y, p)
        x = block(x, second + "_layernorm", feed)
    x = rms_norm(x, params["model.norm.weight"], eps)
    head = params.get("lm_head.weight", embedding)
    return x @ (F.normalize(head, dim=-1) if config["unit_head"] else head).T
