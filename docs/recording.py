"""A run of the demo as a picture of its terminal, made of what it printed:

    hfchat demo --no-serve 2>&1 | tee demo.log
    python docs/recording.py demo.log docs/images/demo.svg

Lines are left out, and long ones are cut; none is changed.
"""

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

_WIDTH = 118  # characters
_SHOWN = (
    r"\[\d/\d\] |\$ |read |train: |8,192 tokens|reloaded|LlamaForCausalLM|\d+ steps of |step +\d+ \| validation|"
    r"step +320 \| The |to learn from|LoRA of|prompt: +Please|before: +I'm Dr|after: +I am the|"
    r"ok    saved: (weights|answers)|assistant: |refusal: Adv|Done in|  \w+/ "
)
_STYLES = {r"\[\d/\d\]": "bold cyan", r"\$ ": "bold", r"ok ": "green", r"Done": "bold"}


def main(log: str, picture: str) -> None:
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", Path(log).read_text(encoding="utf-8"))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    console = Console(record=True, width=_WIDTH, file=StringIO(), color_system="truecolor", force_terminal=True)
    for line in lines:
        if re.match(rf"\s*(?:{_SHOWN})", line) and "%|" not in line:
            style = next((style for start, style in _STYLES.items() if re.match(start, line)), "")
            console.print(Text(line, style), no_wrap=True, overflow="ellipsis")
    svg = console.export_svg(title="hfchat demo")
    Path(picture).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")  # from a CDN


if __name__ == "__main__":
    main(*sys.argv[1:])
