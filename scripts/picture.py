#!/usr/bin/env python3
"""Draws docs/run.svg from a recorded run: the terminal as it stood at a share of the recording. Needs: pip install pyte

    script -qc "stty cols 108 rows 34; make train" run.typescript
    python3 scripts/picture.py run.typescript docs/run.svg --at 0.9
"""

import argparse
import html
import pathlib

import pyte

WIDTH, HEIGHT, MARGIN = 7.85, 17, 14


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=pathlib.Path, help="what `script` wrote")
    parser.add_argument("picture", type=pathlib.Path, help="the SVG to write")
    parser.add_argument("--at", type=float, default=1.0, help="share of the recording, 0 to 1")
    parser.add_argument("--columns", type=int, default=108)
    parser.add_argument("--rows", type=int, default=34)
    return parser.parse_args()


def screen(args):
    """The terminal's lines at that moment, without what `script` itself says."""
    text = args.recording.read_bytes().decode(errors="replace")
    text = text[text.index("\n") + 1 :].split("\nScript done")[0]
    terminal = pyte.Screen(args.columns, args.rows)
    pyte.Stream(terminal).feed(text[: int(len(text) * args.at)])
    lines = [line.rstrip() for line in terminal.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def main():
    args = arguments()
    lines = screen(args)
    width, height = args.columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    rows = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + (i + 0.75) * HEIGHT:.1f}">{html.escape(line)}</text>'
        for i, line in enumerate(lines) if line
    )
    args.picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#1b1b1f"/>\n'
        f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13" fill="#e4e2dc" xml:space="preserve">\n'
        f"{rows}\n</g>\n</svg>\n"
    )


if __name__ == "__main__":
    main()
