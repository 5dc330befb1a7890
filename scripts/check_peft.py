"""Opens a model folder with transformers and adapters of it with PEFT, and prints for tests what PyTorch makes of them: one JSON
object with, of each adapter, the logits of the last position in float32 (`logits`) and float64 (`exact`). It fails where PEFT does
not hold, and would not write, the very numbers and settings of an adapter's files. Needs `pip install torch transformers peft`;
without them the exit code is 3.

    python3 scripts/check_peft.py MODEL 1,17,4 ADAPTER...
"""

import json
import os
import pathlib
import sys
import tempfile

# All that is asked for lies here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"torch, transformers and peft are not all installed here: {error}", file=sys.stderr)
    sys.exit(3)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def check_written(model, adapter):
    """PEFT writes what it has read: the same tensors to the bit, and the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours, theirs = load_file(adapter / WEIGHTS), load_file(pathlib.Path(folder) / WEIGHTS)
        settings = [json.loads((pathlib.Path(f) / CONFIG).read_text()) for f in (adapter, folder)]
    if ours.keys() != theirs.keys():
        sys.exit(f"{adapter}: PEFT has other tensors: {sorted(ours.keys() ^ theirs.keys())}")
    for name, tensor in ours.items():
        if not torch.equal(tensor, theirs[name]):
            sys.exit(f"{adapter}: PEFT has another {name}")
    for key, value in settings[0].items():
        same = sorted if key == "target_modules" else lambda value: value
        if same(value) != same(settings[1].get(key)):
            sys.exit(f"{adapter}: {key} is {value}, and PEFT makes {settings[1].get(key)} of it")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().tolist()


def main(folder, ids, adapters):
    found = {}
    for adapter in map(pathlib.Path, adapters):
        base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
        model = PeftModel.from_pretrained(base, str(adapter)).eval()
        check_written(model, adapter)
        found[adapter.name] = {"logits": logits(model, ids), "exact": logits(model.double(), ids)}
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], [int(i) for i in sys.argv[2].split(",")], sys.argv[3:])
