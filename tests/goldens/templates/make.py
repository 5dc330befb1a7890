"""Renders cases.json as transformers does, for tests of src/data/template.rs: python make.py FOLDER [FILE CASE]

FOLDER holds published chat templates (*.jinja), which are not ours to copy: of their renderings only length and hash are
kept, by file name and conversation. With FILE and CASE the rendering itself is printed, to look at a difference.
Own templates ("features") are kept with their text. Written with transformers 5.24 and jinja2 3.1.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils as utils

NOW = datetime.datetime(2026, 2, 3, 14, 5, 6)
BOS, EOS = "<s>", "</s>"


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def render(source, case):
    """The text, the spans of generation blocks (in bytes), or the sentence of raise_exception; anything else is null."""
    try:
        compiled = utils._compile_jinja_template(source)
        compiled.environment.globals["strftime_now"] = lambda form: NOW.strftime(form)
        rendered, spans = utils.render_jinja_template(
            [utils._normalize_chat_messages(case["messages"])],
            tools=case.get("tools"),
            chat_template=source,
            add_generation_prompt=case["add_generation_prompt"],
            return_assistant_tokens_mask=True,
            bos_token=BOS,
            eos_token=EOS,
            **case.get("extra", {}),
        )
    except jinja2.exceptions.UndefinedError:
        return {"error": None}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}
    except TypeError:
        return {"error": None}
    text = rendered[0]
    out = {"text": text}
    if spans[0]:
        out["spans"] = [[len(text[:i].encode()) for i in span] for span in spans[0]]
    return out


def main():
    here = pathlib.Path(__file__).parent
    cases = json.loads((here / "cases.json").read_text())
    files = sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))
    if len(sys.argv) > 2:
        source = (pathlib.Path(sys.argv[1]) / sys.argv[2]).read_text()
        out = render(source, cases["conversations"][sys.argv[3]])
        print(out.get("text", out))
        return
    published = {}
    for file in files:
        published[file.name] = {}
        for name, case in cases["conversations"].items():
            out = render(file.read_text(), case)
            if "text" in out:
                text = out.pop("text")
                out = {"bytes": len(text.encode()), "fnv1a": fnv1a(text), **out}
            published[file.name][name] = out
    features = {
        name: {case: render(source, cases["conversations"][case]) for case in ["system and turns", "tools used", "closed"]}
        for name, source in cases["features"].items()
    }
    golden = json.dumps({"features": features, "published": published}, indent=1, ensure_ascii=False)
    (here / "golden.json").write_text(golden + "\n")


if __name__ == "__main__":
    main()
