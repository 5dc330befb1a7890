#!/usr/bin/env python3
"""Opens a model folder with transformers and prints the logits of a prompt. Needs: pip install torch transformers

    python3 scripts/check_hf.py FOLDER --prompt "Once upon a time"
    python3 scripts/check_hf.py FOLDER --ids 1,17,4            # token ids instead of text: no tokenizer is loaded
    python3 scripts/check_hf.py FOLDER --against danlu.json    # compares, and fails beyond --tolerance

Prints one JSON object: `prompt`, `ids`, `logits` (of the last position, one for each vocabulary entry, float32),
`greedy` (the tokens that greedy decoding appends) and `text` (their decoding). --against takes a JSON file with `ids`
and `logits` in the same form; the bar is max |difference| <= tolerance * max |logit|.
"""

import argparse
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--ids", help="comma-separated token ids, instead of --prompt")
    parser.add_argument("--greedy", type=int, default=16, help="how many tokens to decode greedily")
    parser.add_argument("--against", help="JSON with ids and logits to compare with")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    return parser.parse_args()


def compare(ours, path, tolerance):
    """Exits with a sentence if the ids differ or a logit is too far off; otherwise says how close they are."""
    theirs = json.loads(pathlib.Path(path).read_text())
    if theirs["ids"] != ours["ids"]:
        sys.exit(f"{path}: token ids differ: {theirs['ids']} there, {ours['ids']} in transformers")
    a, b = torch.tensor(ours["logits"]), torch.tensor(theirs["logits"])
    if a.shape != b.shape:
        sys.exit(f"{path}: {len(b)} logits there, {len(a)} in transformers")
    worst, scale = (a - b).abs().max().item(), a.abs().max().item()
    verdict = f"largest difference {worst:.3e}, largest logit {scale:.3e}, ratio {worst / scale:.1e}"
    if not worst <= tolerance * scale:
        sys.exit(f"{path}: logits differ: {verdict}, above {tolerance:.1e}")
    print(f"{path}: the same logits: {verdict}", file=sys.stderr)


def main():
    args = arguments()
    loaded = AutoModelForCausalLM.from_pretrained(
        args.folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model, info = loaded[0].eval(), loaded[1]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            sys.exit(f"{args.folder}: {kind.replace('_', ' ')}: {sorted(map(str, info[kind]))}")
    tokenizer = None if args.ids else AutoTokenizer.from_pretrained(args.folder)
    ids = [int(i) for i in args.ids.split(",")] if args.ids else tokenizer(args.prompt)["input_ids"]
    tokens, greedy = torch.tensor([ids]), []
    with torch.no_grad():
        logits = last = model(input_ids=tokens).logits[0, -1]
        for _ in range(args.greedy):
            greedy.append(int(last.argmax()))
            tokens = torch.cat((tokens, torch.tensor([greedy[-1:]])), dim=1)
            last = model(input_ids=tokens).logits[0, -1]
    result = {"prompt": None if args.ids else args.prompt, "ids": ids, "logits": logits.tolist(), "greedy": greedy,
              "text": tokenizer.decode(greedy) if tokenizer else None}
    print(json.dumps(result))
    if args.against:
        compare(result, args.against, args.tolerance)


if __name__ == "__main__":
    main()
