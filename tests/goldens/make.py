"""Writes the goldens beside this file: what PyTorch says about small LLaMAs. README.md lists every tensor.

    pip install torch transformers
    python3 tests/goldens/make.py            # writes tests/goldens/{gqa,tied,curve}
    python3 tests/goldens/make.py --check    # computes them again and prints the largest differences from the files

Everything runs in float32 on one CPU thread with transformers' LlamaForCausalLM (eager attention). Where a name begins
with `golden64.` the same quantity was computed in float64 by llama64.py, so that a test can derive its tolerance
from the distance between the two instead of fitting one.

Training, in all three folders, is torch.optim.AdamW (not fused): betas 0.9 and 0.95, eps 1e-8, weight decay 0.1 on
every parameter with two dims (embeddings included) and 0 on the norms; before it the gradients are scaled by
min(1, 1 / (norm + 1e-6)), norm being the l2 norm of all gradients together (torch.nn.utils.clip_grad_norm_ with
max_norm 1.0). The loss is the mean cross-entropy over the targets that are not -100. The learning rate of step 0, 1, ...:

    step <  warmup:  lr * (step + 1) / warmup
    step >= warmup:  min + 0.5 * (lr - min) * (1 + cos(pi * (step - warmup) / (total - warmup))),   min = lr / 10
"""

import argparse
import json
import math
import pathlib
import random
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.dont_write_bytecode = True
import llama64  # noqa: E402 (the line above keeps __pycache__ out of the tree)

HERE = pathlib.Path(__file__).parent
COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
          "num_hidden_layers": 2, "max_position_embeddings": 128, "attention_bias": False, "mlp_bias": False,
          "bos_token_id": None, "eos_token_id": None, "torch_dtype": "float32"}
# Two spellings of the RoPE base exist: `rope_theta` (most folders on the hub) and, since transformers 5,
# `rope_parameters`. Both appear below, so that a reader that knows only one of them fails the golden test.
CONFIGS = {
    "gqa": COMMON | {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "intermediate_size": 48, "rope_theta": 10000.0, "tie_word_embeddings": False},
    "tied": COMMON | {"vocab_size": 64, "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 1,
                      "head_dim": 16, "intermediate_size": 40, "tie_word_embeddings": True,
                      "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "curve": COMMON | {"vocab_size": 256, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "intermediate_size": 96, "rope_theta": 10000.0, "tie_word_embeddings": True},
}
BATCHES = {"gqa": (2, 11), "tied": (3, 17), "curve": (8, 64)}  # (B, T)


def schedule(step, lr, warmup, total):
    if step < warmup:
        return lr * (step + 1) / warmup
    low = lr / 10
    return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def new_model(config, seed, scale):
    """Weights N(0, scale^2). In the small models the norms are 1 + N(0, 0.1^2), so that ignoring them is noticed."""
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * scale)
            elif scale > 0.02:
                parameter.copy_(1 + noise * 0.1)
    return model


def plain_config(config):
    """The same configuration with the optional fields filled in, for llama64."""
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    return {"head_dim": config["hidden_size"] // config["num_attention_heads"]} | config | {"rope_theta": theta}


class Float32:
    """transformers' model, as a function of the tokens."""

    def __init__(self, model):
        self.model, self.params = model, dict(model.named_parameters())

    def logits(self, tokens):
        return self.model(input_ids=tokens, use_cache=False).logits


class Float64:
    """The same initial weights in llama64."""

    def __init__(self, model, config):
        self.config = plain_config(config)
        self.params = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}

    def logits(self, tokens):
        return llama64.logits(self.params, self.config, tokens)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def gradients(net, tokens, targets):
    """(logits, loss, name -> gradient, global norm) of one batch; the network's own .grad fields stay clear."""
    logits = net.logits(tokens)
    loss = loss_of(logits, targets)
    grads = dict(zip(net.params, torch.autograd.grad(loss, list(net.params.values()))))
    return logits.detach(), loss.detach(), grads, torch.stack([g.norm() for g in grads.values()]).norm()


def train(net, batches, lr, warmup):
    """AdamW on batches [steps, B, T + 1]. Returns the losses and the norms before clipping, each [steps]."""
    decayed = [p for p in net.params.values() if p.dim() == 2]
    others = [p for p in net.params.values() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=lr, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    losses, norms = [], []
    for step, batch in enumerate(batches.long()):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, lr, warmup, len(batches))
        optimizer.zero_grad()
        loss = loss_of(net.logits(batch[:, :-1]), batch[:, 1:])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(net.params.values(), 1.0, foreach=False).detach())
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def learnable_tokens(shape, vocab, generator):
    """Rows in which the next token is (5 t + 3) mod vocab three times in four, else any: something to learn."""
    draws = torch.randint(vocab, shape, generator=generator)
    jumps = torch.rand(shape, generator=generator) < 0.25
    for t in range(1, shape[-1]):
        follow = (5 * draws[..., t - 1] + 3) % vocab
        draws[..., t] = torch.where(jumps[..., t], draws[..., t], follow)
    return draws


def small(name, seed):
    """Logits, loss, every gradient, an ignored-targets case and ten steps. Returns (weights, goldens)."""
    config, (B, T), V = CONFIGS[name], BATCHES[name], CONFIGS[name]["vocab_size"]
    model = new_model(config, seed, 0.15)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    f32, f64 = Float32(model), Float64(model, config)
    generator = torch.Generator().manual_seed(seed + 1)
    rows = learnable_tokens((B, T + 1), V, generator)
    tokens, targets = rows[:, :-1], rows[:, 1:].clone()
    ignored = targets.clone()
    ignored[0, : T // 2] = -100
    ignored[-1, -2:] = -100
    batches = learnable_tokens((10, B, T + 1), V, generator)

    out = {"tokens": tokens, "targets": targets, "ignored.targets": ignored, "adamw.batches": batches}
    out = {key: value.to(torch.int32).contiguous() for key, value in out.items()}
    for prefix, net in (("", f32), ("golden64.", f64)):
        logits, loss, grads, norm = gradients(net, tokens, targets)
        out |= {prefix + "logits": logits, prefix + "loss": loss, prefix + "grad_norm": norm}
        out |= {f"{prefix}grad.{n}": g for n, g in grads.items()}
        _, loss, grads, norm = gradients(net, tokens, ignored)
        out |= {prefix + "ignored.loss": loss, prefix + "ignored.grad_norm": norm}
        if net is f32:
            out |= {f"ignored.grad.{n}": g for n, g in grads.items() if "embed" in n or "lm_head" in n}
    for prefix, net in (("", f32), ("golden64.", f64)):
        losses, norms = train(net, batches, lr=1e-2, warmup=3)
        out |= {prefix + "adamw.losses": losses, prefix + "adamw.grad_norms": norms}
    for n, p in f32.params.items():
        out["adamw.final." + n] = p.detach()
        out["golden64.adamw.distance." + n] = (p.detach() - f64.params[n].detach()).abs().max()
    return weights, out


NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"]
THINGS = ["lamp", "boat", "drum", "kite", "map", "ring", "bell", "shoe"]
PLACES = ["the shed", "the well", "the barn", "a cave", "the hill", "a tree"]
COLOURS = ["red", "blue", "green", "old", "small", "shiny"]
STORIES = [
    "{a} had a {c} {t}. One day {a} lost it near {p}. {b} found the {t} and gave it back. \"Thank you,\" said {a}.\n",
    "{a} and {b} went to {p}. They saw a {c} {t}. \"Is it yours?\" asked {a}. \"No,\" said {b}, \"it is not mine.\"\n",
    "The {c} {t} was in {p}. {a} wanted it, but {b} took it first. So {a} was sad until {b} shared the {t}.\n",
    "\"Where is my {t}?\" asked {a}. \"I put it in {p},\" said {b}. {a} ran to {p} and saw the {c} {t}.\n",
]


def story_bytes(count, seed):
    """The first `count` bytes of an endless row of small stories filled in from the lists above."""
    rng, text = random.Random(seed), ""
    while len(text) < count:
        a, b = rng.sample(NAMES, 2)
        text += rng.choice(STORIES).format(a=a, b=b, c=rng.choice(COLOURS), t=rng.choice(THINGS), p=rng.choice(PLACES))
    return torch.tensor(list(text.encode()[:count]), dtype=torch.uint8)


def curve(seed):
    """200 steps from committed weights on committed tokens. Returns (weights, goldens)."""
    config, (B, T), steps = CONFIGS["curve"], BATCHES["curve"], 200
    model = new_model(config, seed, 0.02)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    batches = story_bytes(steps * B * (T + 1), seed).view(steps, B, T + 1)
    out = {"batches": batches}
    for prefix, net in (("golden64.", Float64(model, config)), ("", Float32(model))):
        losses, norms = train(net, batches, lr=3e-3, warmup=20)
        out |= {prefix + "losses": losses, prefix + "grad_norms": norms}
    return weights, out


def self_check():
    """llama64 and transformers must be the same model before either is believed."""
    for name, config in CONFIGS.items():
        model = new_model(config, 7, 0.15)
        tokens = torch.randint(config["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(7))
        ours, theirs = Float64(model, config).logits(tokens), Float32(model).logits(tokens)
        assert torch.allclose(ours.float(), theirs, rtol=1e-4, atol=1e-5), f"llama64 differs from transformers on {name}"


def report(name, out):
    """How far float32 is from float64, relative: the noise that a tolerance has to leave room for."""
    def far(key):
        exact = out["golden64." + key]
        return ((out[key] - exact).abs().max() / exact.abs().max()).item()

    keys = [k for k in out if "golden64." + k in out]
    by_kind = {}
    for key in keys:
        kind = "grad.*" if key.startswith("grad.") else key
        by_kind[kind] = max(by_kind.get(kind, 0.0), far(key))
    distance = [v.item() for k, v in out.items() if ".distance." in k]
    print(name, {k: f"{v:.1e}" for k, v in by_kind.items()}, f"final parameters {max(distance):.1e}" if distance else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    self_check()
    made = {"gqa": small("gqa", 11), "tied": small("tied", 22), "curve": curve(33)}
    for name, (weights, out) in made.items():
        report(name, out)
        folder = HERE / name
        for file, tensors in (("model.safetensors", weights), ("golden.safetensors", out)):
            if check:
                kept = load_file(folder / file)
                assert kept.keys() == tensors.keys(), f"{name}/{file} holds other tensors than this script makes"
                worst = max(((tensors[k].double() - kept[k].double()).abs().max().item(), k) for k in kept)
                print(f"{name}/{file}: largest difference {worst[0]:.1e} ({worst[1]})")
                continue
            folder.mkdir(exist_ok=True)
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)
        if not check:
            text = json.dumps({k: v for k, v in CONFIGS[name].items() if v is not None}, indent=2)
            (folder / "config.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
