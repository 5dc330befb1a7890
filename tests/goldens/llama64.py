"""A LLaMA forward pass in plain PyTorch, any dtype; the float64 side of the goldens.

transformers computes RMSNorm, softmax and RoPE in float32 whatever the model's dtype, so `model.double()` would not
be a float64 reference. This is a second, independent statement of the same model: make.py checks it against
transformers before it trusts it, and computes the `golden64.*` tensors with it.

Shapes: B batch, T time, D model width, H heads, K kv heads, C head width, V vocabulary.
"""

import torch
import torch.nn.functional as F


def rope_tables(config, T, dtype):
    """cos and sin, each [T, C]: the angle of pair i is position * theta^(-2i/C); halves are paired (i, i + C/2)."""
    C, theta = config["head_dim"], config["rope_theta"]
    frequency = theta ** (-torch.arange(0, C, 2, dtype=dtype) / C)
    angle = torch.arange(T, dtype=dtype)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rms_norm(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def attention(x, p, config, cos, sin):
    """Causal attention with grouped queries: query head h reads kv head h // (H / K). x: [B, T, D]."""
    B, T, _ = x.shape
    H, K, C = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q = rotate((x @ p("q_proj").T).view(B, T, H, C).transpose(1, 2), cos, sin)
    k = rotate((x @ p("k_proj").T).view(B, T, K, C).transpose(1, 2), cos, sin).repeat_interleave(H // K, dim=1)
    v = (x @ p("v_proj").T).view(B, T, K, C).transpose(1, 2).repeat_interleave(H // K, dim=1)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) * C**-0.5).masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, H * C) @ p("o_proj").T


def logits(params, config, tokens):
    """params: Hugging Face name -> tensor. tokens: [B, T] integers. Returns [B, T, V] in the parameters' dtype."""
    embedding = params["model.embed_tokens.weight"]
    eps = config["rms_norm_eps"]
    cos, sin = rope_tables(config, tokens.shape[1], embedding.dtype)
    x = embedding[tokens]
    for layer in range(config["num_hidden_layers"]):
        def weight(name):
            return params[f"model.layers.{layer}.{name}.weight"]

        h = rms_norm(x, weight("input_layernorm"), eps)
        x = x + attention(h, lambda name: weight(f"self_attn.{name}"), config, cos, sin)
        h = rms_norm(x, weight("post_attention_layernorm"), eps)
        gate, up = h @ weight("mlp.gate_proj").T, h @ weight("mlp.up_proj").T
        x = x + (F.silu(gate) * up) @ weight("mlp.down_proj").T
    x = rms_norm(x, params["model.norm.weight"], eps)
    return x @ params.get("lm_head.weight", embedding).T
