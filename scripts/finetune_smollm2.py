"""A published model finetuned from the command line, handed on, and asked the same in llama.cpp and in Danlu.

    python3 scripts/finetune_smollm2.py MODEL.gguf alpaca_en_demo.json [--danlu target/release/danlu] [--steps 24] ...

Trains adapters on instructions and their answers, tells the loss on held-out ones before and after, exports the model that the
adapter makes as GGUF, and lets both engines go on greedily from the same texts. Wants Python with xllamacpp (llama.cpp's own
CPU engine); fails where the loss did not fall or an answer differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("model")
ap.add_argument("data")
ap.add_argument("--danlu", default="target/release/danlu")
ap.add_argument("--out", default="runs/smollm2-lora")
ap.add_argument("--steps", default="24")
ap.add_argument("--batch", default="1")
ap.add_argument("--seq", default="256")
ap.add_argument("--lr", default="2e-4")
ap.add_argument("--base-dtype", default="keep")
ap.add_argument("--held-out", type=int, default=24, help="examples, from the end, of which the loss is told")
ap.add_argument("--tokens", type=int, default=40)
args = ap.parse_args()
out = pathlib.Path(args.out)
out.parent.mkdir(parents=True, exist_ok=True)

# The chat form of the model's own template, so that the loss before training is a fair one.
examples = json.loads(pathlib.Path(args.data).read_text())


def question(example):
    return "\n\n".join(part for part in (example["instruction"], example["input"]) if part)


def text(example):
    return f"<|im_start|>user\n{question(example)}<|im_end|>\n<|im_start|>assistant\n{example['output']}<|im_end|>\n"


train, held = out.with_suffix(".train.jsonl"), out.with_suffix(".held.txt")
train.write_text("".join(json.dumps({"text": text(e)}) + "\n" for e in examples[: -args.held_out]))
held.write_text("".join(map(text, examples[-args.held_out :])))


def danlu(*words):
    done = subprocess.run([args.danlu, *map(str, words)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"danlu {words[0]} left with {done.returncode}")
    return done.stdout


def nats(*model):
    report = json.loads(danlu("eval", "--model", *model, "--text", held, "--context", args.seq, "--json"))
    return report["nats"] / report["tokens"]


before = nats(args.model)
print(f"held out, before: {before:.4f} nats a token", flush=True)
# The loss is told on examples of our own: training validates once, on a little.
recipe = out.with_suffix(".toml")
recipe.write_text(f"eval_every = {args.steps}\nval_sequences = 1\n[lora]\n")
flags = ["--recipe", recipe, "--steps", args.steps, "--batch", args.batch, "--seq", args.seq, "--lr", args.lr]
flags += ["--base-dtype", args.base_dtype]
danlu("finetune", "--model", args.model, "--data", train, *flags, "--out", out, "--force", "--tune", "cached")
after = nats(args.model, "--lora", out)
print(f"held out, after: {after:.4f} nats a token", flush=True)

merged = out.with_suffix(".gguf")
danlu("export", out, merged, "--dtype", "f16", "--force")
print(f"held out, merged and as GGUF in f16: {nats(merged):.4f} nats a token", flush=True)

import xllamacpp  # noqa: E402

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.warmup = str(merged), 1024, 0, False
server = xllamacpp.Server(params)
same = True
for example in examples[-3:]:
    prompt = f"<|im_start|>user\n{question(example)}<|im_end|>\n<|im_start|>assistant\n"
    request = {"prompt": prompt, "n_predict": args.tokens, "temperature": 0, "cache_prompt": False}
    theirs = server.handle_completions(request)
    theirs = theirs["content"] if "content" in theirs else theirs["choices"][0]["text"]
    said = danlu("generate", "--model", merged, "--prompt", prompt, "--tokens", args.tokens, "--temperature", 0, "--json")
    ours = json.loads(said)["text"]
    print(f"\n{question(example)}\n  danlu:     {ours!r}\n  llama.cpp: {theirs!r}", flush=True)
    same &= ours.strip() == theirs.strip()
if not same or after >= before:
    sys.exit("the answers differ" if not same else "the loss on held-out examples did not fall")
print("\nthe loss on held-out examples fell, and both engines answer the same")
