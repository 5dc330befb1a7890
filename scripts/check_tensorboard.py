"""Reads a run's folder with TensorBoard's own reader and prints what it found, as JSON: scalars by tag, each a list of
[step, value], and texts. Needs `pip install tensorboard`; without it the exit code is 3.

    python3 scripts/check_tensorboard.py runs/model
"""

import json
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
except ImportError as error:
    print(f"tensorboard is not installed here: {error}", file=sys.stderr)
    sys.exit(3)


def main(folder):
    events = EventAccumulator(folder, size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}
    texts = []
    for tag in tags["tensors"]:
        for event in events.Tensors(tag):
            texts += [[tag, event.step, value.decode()] for value in event.tensor_proto.string_val]
    print(json.dumps({"scalars": scalars, "texts": texts}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
