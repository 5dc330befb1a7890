"""Baichuan 1 and 2 in float32, as their authors' code computes them, for transformers has no such model: a packed
projection of queries, keys and values, rotary positions (7B) or ALiBi (13B), and in Baichuan 2 a head of unit rows.

Shapes: B batch, T time, D model width, H heads, C head width, V vocabulary.
"""

import math

import torch
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, D, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(D)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    def __init__(self, D, H, alibi):
        super().__init__()
        self.W_pack = nn.Linear(D, 3 * D, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        self.H, self.alibi = H, alibi

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.W_pack(x).unflatten(-1, (3, self.H, D // self.H)).permute(2, 0, 3, 1, 4)
        if not self.alibi:
            q, k = turn(q), turn(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(D // self.H)
        mask = torch.full((T, T), float("-inf")).triu(1)
        if self.alibi:
            # The bias grows with the key's place; the query's falls out of the softmax.
            mask = mask + torch.tensor(slopes(self.H))[:, None, None] * torch.arange(T)
        return self.o_proj((torch.softmax(scores + mask, dim=-1) @ v).transpose(1, 2).reshape(B, T, D))


def turn(x):
    T, C = x.shape[-2:]
    angle = torch.outer(torch.arange(T).float(), 10000.0 ** (-torch.arange(0, C, 2).float() / C)).repeat(1, 2)
    return x * angle.cos() + torch.cat((-x[..., C // 2 :], x[..., : C // 2]), dim=-1) * angle.sin()


def slopes(H):
    """A geometric row where H is a power of two; else that of the next smaller one, then every other of the next larger."""
    if math.log2(H).is_integer():
        start = 2 ** (-(2 ** -(math.log2(H) - 3)))
        return [start * start**i for i in range(H)]
    closest = 2 ** math.floor(math.log2(H))
    return slopes(closest) + slopes(2 * closest)[0::2][: H - closest]


class MLP(nn.Module):
    def __init__(self, D, F):
        super().__init__()
        self.gate_proj = nn.Linear(D, F, bias=False)
        self.up_proj = nn.Linear(D, F, bias=False)
        self.down_proj = nn.Linear(F, D, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, D, H, F, eps, alibi):
        super().__init__()
        self.self_attn, self.mlp = Attention(D, H, alibi), MLP(D, F)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(D, eps), RMSNorm(D, eps)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, config, alibi):
        super().__init__()
        D, eps = config["hidden_size"], config["rms_norm_eps"]
        H, F = config["num_attention_heads"], config["intermediate_size"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], D)
        self.layers = nn.ModuleList(Layer(D, H, F, eps, alibi) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(D, eps)


class Baichuan(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = Body(config, alibi="max_position_embeddings" not in config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        self.unit_head = "z_loss_weight" in config

    def forward(self, tokens):
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x)
        x = self.model.norm(x)
        weight = self.lm_head.weight
        return x @ (nn.functional.normalize(weight) if self.unit_head else weight).T
