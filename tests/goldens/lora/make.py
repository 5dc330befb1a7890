"""Writes the adapters in the folders beside it, as PEFT saves them, and golden.safetensors: what PyTorch says of them over
the model of `../gqa`, for its tokens and its ten batches.

    pip install torch transformers peft
    python3 tests/goldens/lora/make.py            # write them anew
    python3 tests/goldens/lora/make.py --check    # compute them again, print the largest differences from the files

The numbers are float64: llama64 with W + s·B·A in the place of W, and for DoRA that times magnitude over row length, the
length held constant in the backward pass. PEFT's own float32 numbers must agree with them, or nothing is written.
`<case>.distance.<t>` is how far they are apart at most.

Training is as in ../make.py: AdamW, decay 0.1 for A and B and 0 for magnitudes, clipping to 1, the same schedule.
"""

import argparse
import pathlib
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import llama64  # noqa: E402
import make  # noqa: E402

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora": dict(r=4, lora_alpha=8, target_modules=LAYERS),
    "rslora": dict(r=3, lora_alpha=2, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "dora": dict(r=4, lora_alpha=8, target_modules=LAYERS, use_dora=True),
}
PREFIX = "base_model.model."


def base():
    config = make.CONFIGS["gqa"]
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).float()
    model.load_state_dict(load_file(HERE.parent / "gqa" / "model.safetensors"))
    return model


def plain(name):
    """PEFT's name of a parameter as its files have it."""
    return name.removeprefix(PREFIX).replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def adapters(model):
    return {plain(n): p for n, p in model.named_parameters() if p.requires_grad}


class Peft:
    """PEFT's model as a function of the tokens."""

    def __init__(self, model):
        self.model, self.params = model, adapters(model)

    def logits(self, tokens):
        return self.model(input_ids=tokens, use_cache=False).logits


class Plain:
    """The formulas, in float64."""

    def __init__(self, weights, params, scale):
        self.config, self.scale = make.plain_config(make.CONFIGS["gqa"]), scale
        self.weights = {n: w.double() for n, w in weights.items()}
        self.params = {n: p.detach().double().requires_grad_() for n, p in params.items()}

    def logits(self, tokens):
        weights = dict(self.weights)
        for name in self.params:
            if not name.endswith(".lora_A.weight"):
                continue
            layer = name.removesuffix(".lora_A.weight")
            w = weights[layer + ".weight"] + self.scale * self.params[layer + ".lora_B.weight"] @ self.params[name]
            magnitude = self.params.get(layer + ".lora_magnitude_vector")
            if magnitude is not None:
                w = w * (magnitude / w.norm(dim=1).detach())[:, None]
            weights[layer + ".weight"] = w
        return llama64.logits(weights, self.config, tokens)


def one(case, settings, folder):
    torch.manual_seed(7)
    model = get_peft_model(base(), LoraConfig(**settings, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in sorted(adapters(model).items()):
            # Zeros would hide half of the gradients.
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = "gqa"
    if folder:
        model.save_pretrained(folder)
    # What is saved is what is loaded.
    if folder:
        again = PeftModel.from_pretrained(base(), folder, is_trainable=True)
        for (n, a), b in zip(adapters(model).items(), adapters(again).values()):
            assert torch.equal(a, b), n
    golden = load_file(HERE.parent / "gqa" / "golden.safetensors")
    tokens, targets = golden["tokens"].long(), golden["targets"].long()
    r, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / r**0.5 if settings.get("use_rslora") else alpha / r
    weights = load_file(HERE.parent / "gqa" / "model.safetensors")
    sides = {"peft": Peft(model), "plain": Plain(weights, adapters(model), scale)}
    numbers = {}
    for side, net in sides.items():
        logits, loss, grads, norm = make.gradients(net, tokens, targets)
        out = {"logits": logits, "loss": loss, "grad_norm": norm} | {f"grad.{n}": g for n, g in grads.items()}
        losses, norms = make.train(net, golden["adamw.batches"], lr=1e-2, warmup=3)
        out |= {"losses": losses, "grad_norms": norms} | {f"final.{n}": p.detach() for n, p in net.params.items()}
        numbers[side] = out
    result = {}
    for key, exact in numbers["plain"].items():
        far = (numbers["peft"][key].double() - exact).abs().max()
        bar = 1e-4 if key.startswith("final.") else 2e-5
        assert far <= bar * exact.abs().max(), f"{case} {key}: PEFT is {far} away"
        result[f"{case}.{key}"] = exact.detach().contiguous()
        result[f"{case}.distance.{key}"] = far.reshape(1)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    file, out = HERE / "golden.safetensors", {}
    for case, settings in CASES.items():
        out |= one(case, settings, None if check else HERE / case)
        (HERE / case / "README.md").unlink(missing_ok=True)
    if check:
        kept = load_file(file)
        assert kept.keys() == out.keys()
        print(max(((out[k] - kept[k]).abs().max().item(), k) for k in kept if ".distance." not in k))
    else:
        save_file(out, file)
        file.chmod(0o644)
    print("PEFT's float32 is at most this far:", max((v.item(), k) for k, v in out.items() if ".distance." in k))


if __name__ == "__main__":
    main()
