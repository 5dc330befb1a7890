"""Which tokens are the assistant's, for tests of src/data/template/answers.rs: python masks.py TEMPLATES TOKENIZER

TEMPLATES holds published chat templates (*.jinja), TOKENIZER is a tokenizer.json (Llama 3.1's). Two ways, neither of which is
that of the library:

* own templates with {% generation %}: the mask of transformers' apply_chat_template(return_assistant_tokens_mask=True);
* published ones, none of which has such marks: a pattern a template, written by hand, that says where answers stand in its
  text, from what a prompt ends with to what ends the turn.

A mask is kept as runs of tokens [first, end), with the number of all. Written with transformers 5.24 and tokenizers 0.22.
"""

import json
import pathlib
import re
import sys

import make
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

CHATML = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
LLAMA3 = r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)"
MISTRAL = r"(?:\[/INST\]|\[/TOOL_RESULTS\])(.*?</s>)"
DEEPSEEK = r"(?:<｜Assistant｜>|<｜tool▁outputs▁end｜>)(.*?<｜end▁of▁sentence｜>)"
PATTERNS = {
    "Mistral-Small-3.2-24B-Instruct-2506.jinja": MISTRAL,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": CHATML,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja": CHATML,
    "Qwen-QwQ-32B.jinja": CHATML,
    "Qwen-Qwen2.5-7B-Instruct.jinja": CHATML,
    "Qwen-Qwen3-0.6B.jinja": CHATML,
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": DEEPSEEK,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": DEEPSEEK,
    "google-gemma-2-2b-it.jinja": r"<start_of_turn>model\n(.*?<end_of_turn>)",
    "ibm-granite-granite-3.3-2B-Instruct.jinja": r"<\|start_of_role\|>assistant<\|end_of_role\|>(.*?<\|end_of_text\|>)",
    "llama-cpp-deepseek-r1.jinja": DEEPSEEK,
    "llama-cpp-rwkv-world.jinja": r"Assistant:(.*?\n\n)(?=User:|\Z)",
    "meetkai-functionary-medium-v3.1.jinja": LLAMA3,
    "meetkai-functionary-medium-v3.2.jinja": LLAMA3.replace(r"\n\n", r"\n\n>>>"),
    "meta-llama-Llama-3.1-8B-Instruct.jinja": LLAMA3,
    "meta-llama-Llama-3.2-3B-Instruct.jinja": LLAMA3,
    "meta-llama-Llama-3.3-70B-Instruct.jinja": LLAMA3,
    "microsoft-Phi-3.5-mini-instruct.jinja": r"<\|assistant\|>\n(.*?<\|end\|>)",
    "mistralai-Mistral-Nemo-Instruct-2407.jinja": MISTRAL,
    "moonshotai-Kimi-K2.jinja": r"<\|im_assistant\|>assistant<\|im_middle\|>(.*?<\|im_end\|>)",
    "openai-gpt-oss-120b.jinja": r"<\|start\|>assistant(.*?(?:<\|end\|>|<\|return\|>|<\|call\|>))",
    "unsloth-mistral-Devstral-Small-2507.jinja": MISTRAL,
}
# What cannot be told from a template's text alone, and what it leaves out; the library must refuse it.
REFUSED = {
    # The beginning of an answer stands at the end whether it is asked for or not.
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja": "*",
    # Calls of functions are left out: nothing would be learnt of them but silence.
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": "tools",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": "tools",
    "ibm-granite-granite-3.3-2B-Instruct.jinja": "tools",
    "llama-cpp-rwkv-world.jinja": "tools",
    "microsoft-Phi-3.5-mini-instruct.jinja": "tools",
}


def runs(mask):
    out = []
    for i, on in enumerate(mask):
        if on and out and out[-1][1] == i:
            out[-1][1] = i + 1
        elif on:
            out.append([i, i + 1])
    return {"tokens": len(mask), "answers": out}


def by_pattern(tokenizer, text, pattern):
    spans = [m.span(1) for m in re.finditer(pattern, text, re.S)]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    inside = lambda a, b: any(max(a, s) < min(max(b, a + 1), e) for s, e in spans)
    return runs([inside(a, b) for a, b in encoding.offsets])


def main():
    here = pathlib.Path(__file__).parent
    cases = json.loads((here / "masks_cases.json").read_text())
    tokenizer = Tokenizer.from_file(sys.argv[2])
    published = {}
    for file in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        published[file.name] = {}
        for name, case in cases["conversations"].items():
            rendered = make.render(file.read_text(), {**case, "add_generation_prompt": False})
            refused = REFUSED.get(file.name) in ("*", name)
            if "text" not in rendered:
                continue
            if refused:
                published[file.name][name] = None
            elif file.name in PATTERNS:
                published[file.name][name] = by_pattern(tokenizer, rendered["text"], PATTERNS[file.name])
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    fast = PreTrainedTokenizerFast(tokenizer_file=sys.argv[2], **ends)
    own = {}
    for template, source in cases["templates"].items():
        own[template] = {}
        for name, case in cases["conversations"].items():
            out = fast.apply_chat_template(
                case["messages"],
                tools=case.get("tools"),
                chat_template=source,
                return_assistant_tokens_mask=True,
                return_dict=True,
            )
            own[template][name] = runs(out["assistant_masks"])
    golden = json.dumps({"own": own, "published": published}, ensure_ascii=False)
    (here / "masks.json").write_text(golden.replace("}, \"", "},\n\"") + "\n")


if __name__ == "__main__":
    main()
