#!/usr/bin/env python3
"""Scores a model folder with transformers, to compare with `danlu eval`. Needs: pip install torch transformers tokenizers

    python3 scripts/reference_eval.py FOLDER --text FILE --context 256 --stride 128
    python3 scripts/reference_eval.py FOLDER --items FILE --items FILE --limit 50
    python3 scripts/reference_eval.py FOLDER --gguf FILE.gguf ...      # a file in FOLDER, dequantised by transformers

One JSON object a line, with the names of `danlu eval --json`. The perplexity is the loop of transformers' page
"Perplexity of fixed-length models"; items are scored one by one, without batches or padding, by the rules of
lm-evaluation-harness (`hellaswag`, `arc_easy`, `lambada_openai`; HFLM.loglikelihood). In float64, or --dtype.

The figures of tests/eval/expected.json are its output:

    for model in models/tiny FOLDER-OF-STORIES260K; do
        python3 scripts/reference_eval.py $model --text tests/eval/story.txt --context 64 --stride 24 \\
            --items tests/eval/hellaswag.jsonl --items tests/eval/arc.jsonl --items tests/eval/lambada.jsonl
    done
"""

import argparse
import json
import math
import os
import re

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


def log_probs(model, tokens):
    """ln p of every token that could follow each of `tokens`."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


def perplexity(model, encode, text, context, stride, limit):
    ids, nats, scored, previous = encode(text), 0.0, 0, 0
    windows = list(range(0, len(ids), stride))[:limit]
    for begin in windows:
        end = min(begin + context, len(ids))
        window, targets = ids[begin:end], end - previous
        lp = log_probs(model, window)
        for at in range(max(1, len(window) - targets), len(window)):
            nats -= lp[at - 1, window[at]].item()
            scored += 1
        previous = end
        if end == len(ids):
            break
    words, size = len(text.split()), len(text.encode())
    return {
        "tokens": scored,
        "bytes": size,
        "words": words,
        "nats": nats,
        "perplexity": math.exp(nats / scored),
        "bits_per_byte": nats / math.log(2) / size,
        "word_perplexity": math.exp(nats / words),
        "context": context,
        "stride": stride,
    }


def preprocess(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def item(doc):
    """Form, context, choices as they are scored, choices as they are measured, and the right one."""
    if "endings" in doc:
        query = preprocess(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}")
        choices = [preprocess(e) for e in doc["endings"]]
        return "hellaswag", query, [" " + c for c in choices], choices, int(doc["label"])
    if "answerKey" in doc:
        choices = doc["choices"]["text"]
        gold = doc["choices"]["label"].index(doc["answerKey"])
        return "arc", f"Question: {doc['question']}\nAnswer:", [" " + c for c in choices], choices, gold
    if "continuation" in doc:
        apart = "" if doc["context"][-1:].isspace() else " "
        return "lambada", doc["context"], [apart + doc["continuation"]], [doc["continuation"]], 0
    words = doc["text"].split(" ")
    return "lambada", " ".join(words[:-1]), [" " + words[-1]], [words[-1]], 0


def loglikelihood(model, encode, context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    whole, before = encode(context + continuation), encode(context)
    after = whole[len(before):]
    window = (before + after)[-(model.config.max_position_embeddings + 1):][:-1]
    lp = log_probs(model, window)[-len(after):]
    total = sum(lp[i, token].item() for i, token in enumerate(after))
    return total, lp.argmax(-1).tolist() == after


def mean(name, values):
    value = sum(values) / len(values)
    spread = math.sqrt(sum((v - value) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
    return {"name": name, "value": value, "stderr": spread if len(values) > 1 else None}


def score(model, encode, file, limit):
    docs = [json.loads(line) for line in open(file) if line.strip()][:limit]
    acc, norm, size, nats, form = [], [], [], [], ""
    for doc in docs:
        form, context, choices, measured, gold = item(doc)
        answers = [loglikelihood(model, encode, context, c) for c in choices]
        if form == "lambada":
            acc.append(float(answers[0][1]))
            nats.append(-answers[0][0])
            continue
        best = lambda length: max(range(len(choices)), key=lambda i: answers[i][0] / length(measured[i]))
        acc.append(float(best(lambda c: 1) == gold))
        norm.append(float(best(len) == gold))
        size.append(float(best(lambda c: len(c.encode())) == gold))
    if form == "lambada":
        ppl = mean("perplexity", nats)
        ppl["value"] = math.exp(ppl["value"])
        ppl["stderr"] = ppl["stderr"] and ppl["stderr"] * ppl["value"]
        metrics = [mean("acc", acc), ppl]
    else:
        metrics = [mean("acc", acc), mean("acc_norm", norm), mean("acc_bytes", size)]
    return {"form": form, "items": len(docs), "metrics": metrics}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder")
    parser.add_argument("--gguf", help="name of a GGUF file in the folder")
    parser.add_argument("--text", action="append", default=[], help="text file")
    parser.add_argument("--items", action="append", default=[], help="JSONL file")
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--stride", type=int, default=128, help="tokens by which it moves")
    parser.add_argument("--dtype", default="float64", help="float64 or float32")
    parser.add_argument("--limit", type=int, help="first items of a file, first windows of a text")
    args = parser.parse_args()
    extra = {"gguf_file": args.gguf} if args.gguf else {}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), **extra).eval()
    own = os.path.join(args.model, "tokenizer.json")
    if os.path.exists(own):
        tokenizer = Tokenizer.from_file(own)
        encode = lambda text: tokenizer.encode(text).ids
    else:
        encode = AutoTokenizer.from_pretrained(args.model, **extra).encode
    for file in args.text:
        result = perplexity(model, encode, open(file).read(), args.context, args.stride, args.limit)
        print(json.dumps({"model": args.model, "file": file, **result}))
    for file in args.items:
        print(json.dumps({"model": args.model, "file": file, **score(model, encode, file, args.limit)}))


if __name__ == "__main__":
    main()
