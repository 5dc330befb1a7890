"""Lets llama.cpp go on greedily from texts, on the CPU, and prints what it says as a JSON list, for tests that compare.
Needs `pip install xllamacpp`, which brings llama.cpp's own engine; without it the exit code is 3.

    python3 scripts/check_llama_cpp.py MODEL.gguf TOKENS PROMPT...
"""

import json
import sys

try:
    import xllamacpp
except ImportError as error:
    print(f"xllamacpp is not installed here: {error}", file=sys.stderr)
    sys.exit(3)


def main(model, tokens, prompts):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.warmup = model, 512, 0, False
    server = xllamacpp.Server(params)
    texts = []
    for prompt in prompts:
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
        said = server.handle_completions(request)
        texts.append(said["content"] if "content" in said else said["choices"][0]["text"])
    print(json.dumps(texts))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
