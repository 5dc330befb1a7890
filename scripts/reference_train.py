#!/usr/bin/env python3
"""Trains a LLaMA with PyTorch on the batches of a Danlu run, to compare losses. Needs: pip install torch transformers

    danlu train ... --dump FOLDER
    python3 scripts/reference_train.py --model FOLDER --tokens tokens.bin --batch 8 --seq 64 --lr 1e-3 \\
        --val-tokens val.bin --out curve.json

FOLDER is a Hugging Face folder with the initial weights (config.json, model.safetensors). The token files are raw
little-endian u32 without a header: batches in the order [step][B][T+1], so that row[:-1] is the input and row[1:]
the target; --steps defaults to all that the file holds. Float32, eager attention, no dropout.

The optimizer is the one of tests/goldens/make.py: AdamW, weight decay on parameters with two dims only, gradients
scaled by min(1, clip / (norm + 1e-6)), and the learning rate of step 0, 1, ...
    step <  warmup:  lr * (step + 1) / warmup
    step >= warmup:  min + 0.5 * (lr - min) * (1 + cos(pi * (step - warmup) / (total - warmup))),   min = lr * min-lr-ratio

The last line on stdout is JSON: the validation loss before and after (nats, the mean over all targets), the last
training loss and the seconds. --out writes the whole curve. Progress goes to stderr.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import numpy
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder with the initial weights")
    parser.add_argument("--tokens", required=True, help="training batches, u32 little-endian")
    parser.add_argument("--val-tokens", help="validation batches, in the same form")
    parser.add_argument("--batch", type=int, required=True, help="B, rows a step")
    parser.add_argument("--seq", type=int, required=True, help="T, targets a row (the file's rows are T+1 long)")
    parser.add_argument("--steps", type=int, help="default: as many as the file holds")
    parser.add_argument("--total", type=int, help="length of the schedule; default: --steps")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--min-lr-ratio", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0, help="global gradient norm; 0 turns clipping off")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", help="write the curve here, as JSON")
    parser.add_argument("--save", help="write the trained model to this folder")
    return parser.parse_args()


def read_batches(path, B, T, vocab):
    """[steps, B, T+1] as int64, or an exit with a sentence saying what is wrong with the file."""
    flat = numpy.fromfile(path, dtype="<u4")
    step = B * (T + 1)
    if len(flat) == 0 or len(flat) % step:
        sys.exit(f"{path}: holds {len(flat)} tokens, which is not a whole number of batches of {B} x ({T} + 1)")
    if flat.max() >= vocab:
        sys.exit(f"{path}: token {flat.max()} is outside the vocabulary of {vocab}; is it raw little-endian u32?")
    return torch.from_numpy(flat.astype(numpy.int64)).view(-1, B, T + 1)


def loss_of(model, batch):
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def validate(model, batches):
    return sum(loss_of(model, batch).item() for batch in batches) / len(batches)


def learning_rate(step, args, total):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    low = args.lr * args.min_lr_ratio
    progress = min(1.0, (step - args.warmup) / max(1, total - args.warmup))
    return low + 0.5 * (args.lr - low) * (1 + math.cos(math.pi * progress))


def train(model, batches, args):
    total = args.total or len(batches)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    curve = {"losses": [], "grad_norms": [], "learning_rates": []}
    for step, batch in enumerate(batches):
        lr = learning_rate(step, args, total)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or math.inf)
        optimizer.step()
        for key, value in (("losses", loss.item()), ("grad_norms", norm.item()), ("learning_rates", lr)):
            curve[key].append(value)
        if step % 50 == 0 or step + 1 == len(batches):
            print(f"step {step}: loss {loss.item():.4f}, grad norm {norm.item():.3f}", file=sys.stderr)
    return curve


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
    vocab = model.config.vocab_size
    batches = read_batches(args.tokens, args.batch, args.seq, vocab)
    if args.steps and args.steps > len(batches):
        sys.exit(f"{args.tokens}: holds {len(batches)} steps, fewer than --steps {args.steps}")
    batches = batches[: args.steps] if args.steps else batches
    held_out = read_batches(args.val_tokens, args.batch, args.seq, vocab) if args.val_tokens else None
    before = validate(model, held_out) if args.val_tokens else None
    start = time.perf_counter()
    model.train()
    curve = train(model, batches, args)
    seconds = time.perf_counter() - start
    model.eval()
    after = validate(model, held_out) if args.val_tokens else None
    result = {"steps": len(batches), "val_loss_before": before, "val_loss": after, "train_loss": curve["losses"][-1],
              "seconds": round(seconds, 2), "tokens_per_second": round(batches[:, :, 1:].numel() / seconds)}
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(result | {"torch": torch.__version__} | curve) + "\n")
    if args.save:
        model.save_pretrained(args.save)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
