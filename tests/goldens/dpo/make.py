"""Writes golden.safetensors beside it: what PyTorch says of preference pairs for the model of `../gqa`, in float64.

    pip install torch safetensors transformers trl
    python3 tests/goldens/dpo/make.py            # write it anew
    python3 tests/goldens/dpo/make.py --check    # compute it again, and have TRL compute it; print the largest differences

Direct preference optimisation (Rafailov et al., 2023, equation 7): with pi and ref the sums of the log-probabilities of an
answer's tokens, -log sigmoid(beta * ((pi_c - pi_r) - (ref_c - ref_r))), its mean over the pairs, and the rewards
beta * (pi - ref). The reference is the same model with other numbers. Beside it `smoothed`, in which a share of 0.1 of the pairs
is taken to be the wrong way round; `ipo`, (h - 1 / (2 beta))**2 with h the difference of pi - ref, each divided by the number
of its answer's tokens (Azar et al., 2023, equation 17); and `hinge`, max(0, 1 - margin).

These are TRL's loss types "sigmoid", "ipo" and "hinge", and --check asks TRL itself: its collator and the loss of its DPOTrainer,
in float32, for the loss, the rewards and every gradient. Its releases since 1.0 have no smoothing of this kind: it is their
"sigmoid" of the pairs and of the pairs turned round, 0.9 and 0.1 of them.

`tokens`, `targets` [6,11]: rows 2n and 2n + 1 are the better and the worse answer, -100 where a token does not count.
`log_probs`, `reference`, `rewards` [6]; of each loss `<loss>` [1], and `grad.<loss>.<p>` as float32, of all but `loss`
those of gains and of the last layer's query projection.
"""

import argparse
import pathlib
import sys
import tempfile

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import llama64  # noqa: E402
import make  # noqa: E402

BETA = 0.3
# One pair is then further apart than a hinge looks.
HINGE_BETA = 1.5
SMOOTHING = 0.1
# Of each row: where its answer begins, and where it ends.
ANSWERS = [(4, 11), (4, 8), (2, 6), (2, 11), (7, 9), (7, 10)]


def sums(params, config, tokens, targets):
    log_probs = llama64.logits(params, config, tokens).log_softmax(-1)
    counted = targets != -100
    of_targets = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (of_targets * counted).sum(-1)


def setting():
    """(config, weights, the reference's weights, text [6,12]), all float64."""
    generator = torch.Generator().manual_seed(11)
    config = make.plain_config(make.CONFIGS["gqa"])
    weights = {n: w.double() for n, w in load_file(HERE.parent / "gqa" / "model.safetensors").items()}
    reference = {n: w * (1 + 0.1 * torch.randn(w.shape, generator=generator, dtype=torch.float64)) for n, w in weights.items()}
    rows, length = len(ANSWERS), 11
    text = torch.randint(0, config["vocab_size"], (rows, length + 1), generator=generator)
    for row, (begin, _) in enumerate(ANSWERS):
        # Both answers of a pair have one question.
        text[row, : begin + 1] = text[row - row % 2, : begin + 1]
    return config, weights, reference, text


def numbers():
    config, weights, reference, text = setting()
    params = {n: w.clone().requires_grad_() for n, w in weights.items()}
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].clone()
    for row, (begin, end) in enumerate(ANSWERS):
        targets[row, :begin] = -100
        targets[row, end:] = -100
    pi = sums(params, config, tokens, targets)
    with torch.no_grad():
        # As a device gets them.
        ref = sums(reference, config, tokens, targets).float().double()
    rewards = BETA * (pi - ref)
    margins = rewards[0::2] - rewards[1::2]
    lengths = torch.tensor([end - begin for begin, end in ANSWERS], dtype=torch.float64)
    per_token = (pi - ref) / lengths
    losses = {
        "loss": -F.logsigmoid(margins).mean(),
        "smoothed": (-(1 - SMOOTHING) * F.logsigmoid(margins) - SMOOTHING * F.logsigmoid(-margins)).mean(),
        "ipo": ((per_token[0::2] - per_token[1::2] - 1 / (2 * BETA)) ** 2).mean(),
        "hinge": torch.relu(1 - HINGE_BETA / BETA * margins).mean(),
    }
    out = {
        "tokens": tokens.int(),
        "targets": targets.int(),
        "beta": torch.tensor([BETA], dtype=torch.float64),
        "hinge_beta": torch.tensor([HINGE_BETA], dtype=torch.float64),
        "log_probs": pi.detach(),
        "reference": ref,
        "rewards": rewards.detach(),
    }
    for kind, loss in losses.items():
        out[kind] = loss.detach().reshape(1)
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        some = {n: g.float() for n, g in zip(params, grads) if kind == "loss" or g.dim() == 1 or "1.self_attn.q_proj" in n}
        out |= {f"grad.{kind}.{n}": g for n, g in some.items()}
    return out


def of_trl():
    """The same by TRL's DPOTrainer, in float32; of the gradients all."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    _, weights, reference, text = setting()
    config = make.CONFIGS["gqa"]

    def model(weights):
        model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
        model.load_state_dict({n: w.float() for n, w in weights.items()})
        return model

    # Nothing is ever tokenised: the pairs are ids already.
    words = {f"w{i}": i for i in range(config["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1")
    prompts = [{"prompt": "w2", "chosen": "w3", "rejected": "w4"}]

    def pair(n, turned):
        ids = text[2 * n : 2 * n + 2].tolist()
        begins, ends = zip(*ANSWERS[2 * n : 2 * n + 2])
        better, worse = (ids[i][begins[i] + 1 : ends[i] + 1] for i in ((1, 0) if turned else (0, 1)))
        return {"prompt_ids": ids[0][: begins[0] + 1], "chosen_ids": better, "rejected_ids": worse}

    def run(loss_type, turned=False, beta=BETA):
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(folder, loss_type=[loss_type], beta=beta, use_cpu=True, bf16=False, report_to="none",
                             gradient_checkpointing=False)
            trainer = DPOTrainer(model(weights), ref_model=model(reference), args=args,
                                 train_dataset=Dataset.from_list(prompts), processing_class=tokenizer)
            batch = trainer.data_collator([pair(n, turned) for n in range(len(ANSWERS) // 2)])
            loss = trainer.compute_loss(trainer.model, batch)
            params = dict(trainer.model.named_parameters())
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
            said = {k: v[-1] * BETA / beta for k, v in trainer._metrics["train"].items() if k.startswith("rewards/")}
            return loss.detach(), grads, said

    plain, turned = run("sigmoid"), run("sigmoid", turned=True)
    def mixed(straight, turned):
        return (1 - SMOOTHING) * straight + SMOOTHING * turned

    grads = {n: mixed(g, turned[1][n]) for n, g in plain[1].items()}
    smoothed = (mixed(plain[0], turned[0]), grads, plain[2])
    return {"loss": plain, "smoothed": smoothed, "ipo": run("ipo"), "hinge": run("hinge", beta=HINGE_BETA)}


def check_trl(kept):
    """Refuses what differs from TRL's numbers by more than sums of float32 do: of each tensor's largest value a few
    thousand roundings, those of a model of two layers, forward and back."""
    def same(name, ours, theirs):
        off = ((ours.double() - theirs.double()).abs().max() / ours.abs().max()).item()
        assert off < 4096 * torch.finfo(torch.float32).eps, (name, off)
        return off, name

    worst = []
    for kind, (loss, grads, said) in of_trl().items():
        worst.append(same(kind, kept[kind], loss.reshape(1)))
        for side, name in enumerate(("rewards/chosen", "rewards/rejected")):
            worst.append(same(name, kept["rewards"][side::2].mean(), torch.tensor(said[name])))
        names = [n for n in grads if f"grad.{kind}.{n}" in kept]
        assert len(names) == (len(grads) if kind == "loss" else 6)
        worst += [same(f"grad.{kind}.{n}", kept[f"grad.{kind}.{n}"], grads[n]) for n in names]
    print("TRL:", len(worst), "tensors, the furthest", max(worst), "of its largest value")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    file, out = HERE / "golden.safetensors", {n: t.contiguous() for n, t in numbers().items()}
    if check:
        kept = load_file(file)
        assert kept.keys() == out.keys()
        print(max(((out[k] - kept[k]).abs().max().item(), k) for k in kept))
        check_trl(kept)
    else:
        save_file(out, file)
        file.chmod(0o644)
        print({k: out[k].tolist() for k in ("log_probs", "reference", "rewards", "loss", "smoothed", "ipo", "hinge")})


if __name__ == "__main__":
    main()
