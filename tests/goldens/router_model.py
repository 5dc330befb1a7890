"""Writes families/mixtral/router.safetensors beside this file: a Mixtral's loss with that of its routers, by transformers.

    python3 tests/goldens/router_model.py

The model, tokens and targets are those of families/mixtral (families.py). `loss` [] is the mean cross entropy of the targets and
0.5 times the auxiliary loss that transformers gives where output_router_logits is set, and 0.25 times the mean of the square
of logsumexp of the router logits that it gives; `balance` [] and `z` [] are these two, and grad.<p> the gradient of `loss`
for every parameter by its canonical name, float32. distance.<t> [] float64 is how far each is from the same with a model in
float64, at most.
"""

import pathlib

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from families import canonical

HERE = pathlib.Path(__file__).parent / "families" / "mixtral"
BALANCE, Z = 0.5, 0.25


def measure(dtype):
    model = transformers.MixtralForCausalLM.from_pretrained(HERE, attn_implementation="eager", experts_implementation="eager").to(dtype).eval()
    golden = load_file(HERE / "golden.safetensors")
    tokens, targets = golden["tokens"].long(), golden["targets"].long()
    said = model(input_ids=tokens, use_cache=False, output_router_logits=True)
    entropy = F.cross_entropy(said.logits.flatten(0, 1), targets.flatten())
    z = torch.stack([logits.logsumexp(-1).square() for logits in said.router_logits]).mean()
    loss = entropy + BALANCE * said.aux_loss + Z * z
    params = dict(model.named_parameters())
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
    config = model.config.to_dict()
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    out = {"loss": loss, "balance": said.aux_loss, "z": z}
    return {name: t.detach() for name, t in out.items()} | {f"grad.{n}": g for n, g in canonical(grads, config).items()}


def main():
    ours, exact = measure(torch.float32), measure(torch.float64)
    far = {f"distance.{name}": (t.double() - exact[name].double()).abs().max() for name, t in ours.items()}
    worst = max((far[f"distance.{n}"] / exact[n].abs().max()).item() for n in ours)
    print(f"loss {ours['loss'].item():.6f}, balance {ours['balance'].item():.6f}, z {ours['z'].item():.6f}; float32 is at most {worst:.1e} from float64")
    save_file({n: t.contiguous() for n, t in (ours | far).items()}, HERE / "router.safetensors")


if __name__ == "__main__":
    main()
