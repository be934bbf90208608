"""The tokenizer report: what it makes of languages and code, against other tokenizers, and what it loses."""

import base64
import dataclasses
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from transformers import PreTrainedTokenizerBase

from hfchat.errors import UserError
from hfchat.markdown import markdown_of
from hfchat.models import BUNDLED, cache_dir, load_tokenizer
from hfchat.templates import template_environment
from hfchat.token_ids import encode_texts, special_tokens
from hfchat.tokenization.check import SAMPLES, bytes_per_token, lost_texts, unicode_blocks
from hfchat.tokenization.sampling import TextSample, first_bytes

if TYPE_CHECKING:
    import jinja2
    from datasets import Dataset

NAME = "this tokenizer"
VALIDATION_DOCUMENTS = 1000
USAGE_BYTES = 5_000_000
TOKENS_SHOWN = 40
CHARACTERS_SHOWN = 40


@dataclass(frozen=True)
class Row:
    """A text: its size in bytes of UTF-8, and bytes per token of each tokenizer, by name."""

    name: str
    bytes: int
    bytes_per_token: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The figures of a tokenizer.

    Attributes:
        model: What kind it is.
        vocab_size: Number of tokens, the special ones included.
        special_tokens: Number of these, `reserved_tokens` of those that have no use yet.
        tokenizers: How many tokens each of those that are compared has; the first is this one.
        not_found: Those that could not be loaded.
        groups: Rows under their headings.
        usage_bytes: How much of the corpus was encoded to see which tokens it uses.
        used_tokens: How many tokens that are not special occur in it.
        unused_count: How many do not; `unused` are some of them.
        longest: The tokens with most characters.
        lost_samples: Names of `SAMPLES` that do not come back exactly.
        lost_blocks: Unicode blocks that do not, each with its assigned `characters`, and how many are `changed` alone.
        blocks: How many blocks there are, `characters` how many assigned characters in them.
        unicode_version: The version of Unicode that has these.
    """

    model: str
    vocab_size: int
    special_tokens: int
    reserved_tokens: int
    tokenizers: dict[str, int]
    not_found: list[str]
    groups: dict[str, list[Row]]
    usage_bytes: int
    used_tokens: int
    unused_count: int
    unused: list[str]
    longest: list[str]
    lost_samples: list[str]
    lost_blocks: dict[str, dict[str, int]]
    blocks: int
    characters: int
    unicode_version: str

    @property
    def validation_bytes_per_token(self) -> float:
        return self.groups["The corpus"][0].bytes_per_token[NAME]

    def metrics(self) -> dict[str, object]:
        """What goes into the lineage."""
        return {
            "vocab_size": self.vocab_size,
            "validation_bytes_per_token": self.validation_bytes_per_token,
            "used_tokens": self.used_tokens,
            "reserved_tokens": self.reserved_tokens,
            "lossless": not self.lost_samples and not self.lost_blocks,
        }

    def summary(self) -> str:
        """Two lines for the terminal."""
        if self.lost_samples or self.lost_blocks:
            lost = ", ".join([*self.lost_samples, *self.lost_blocks][:5])
            outcome = f"it changes text: {len(self.lost_blocks)} of {self.blocks} Unicode blocks ({lost}, ...)"
        else:
            outcome = "exact round trip"
        return (
            f"{self.vocab_size:,} tokens, {self.validation_bytes_per_token:.2f} bytes per token on the validation "
            f"split\nreloaded with AutoTokenizer: identical ids, {outcome}"
        )


def describe(
    tokenizer: PreTrainedTokenizerBase,
    validation: "Dataset",
    text_column: str,
    sample: TextSample,
    compare_with: Sequence[str],
) -> Report:
    """Measure a tokenizer.

    Args:
        tokenizer: The one that the report is about.
        validation: Split of the corpus that it was not trained on.
        text_column: Its column of text.
        sample: A sample of the corpus, to see which tokens it uses.
        compare_with: Folders or Hub ids of other tokenizers. What is not on this machine is left out.
    """
    tokenizers, not_found = {NAME: tokenizer}, []
    for name in compare_with:
        try:
            tokenizers[name] = _load(name)
        except UserError:
            not_found.append(name)
    # The texts that all of them are compared on
    samples = yaml.safe_load(files(__package__).joinpath("samples.yaml").read_text(encoding="utf-8"))
    groups = {
        "The corpus": _corpus_texts(validation, text_column),
        "Languages, Article 1 of the Declaration of Human Rights": _as_lists(samples["languages"]),
        "Code": _as_lists(samples["code"]),
    }
    # The tokens that the corpus uses, of those that stand for text
    ids = special_tokens(tokenizer).keys()
    texts = first_bytes(sample, USAGE_BYTES)
    used = set().union(*encode_texts(tokenizer, texts))
    plain = [id for id in range(len(tokenizer)) if id not in ids]
    unused = [id for id in plain if id not in used]
    blocks = unicode_blocks()
    spelled = {id: _spell(tokenizer, id) for id in plain}
    return Report(
        model=_kind(tokenizer),
        vocab_size=len(tokenizer),
        special_tokens=len(ids),
        reserved_tokens=sum(token.startswith("<|reserved_") for token in tokenizer.convert_ids_to_tokens(list(ids))),
        tokenizers={name: len(other) for name, other in tokenizers.items()},
        not_found=not_found,
        groups={title: _rows(tokenizers, group) for title, group in groups.items()},
        usage_bytes=sum(len(text.encode()) for text in texts),
        used_tokens=len(plain) - len(unused),
        unused_count=len(unused),
        unused=[spelled[id] for id in unused[-TOKENS_SHOWN:]],
        longest=sorted(spelled.values(), key=lambda token: (-len(token), token))[:TOKENS_SHOWN],
        lost_samples=list(lost_texts(tokenizer, SAMPLES)),
        lost_blocks={
            name: {"characters": len(blocks[name]), "changed": _changed_alone(tokenizer, blocks[name])}
            for name in lost_texts(tokenizer, blocks)
        },
        blocks=len(blocks),
        characters=sum(map(len, blocks.values())),
        unicode_version=unicodedata.unidata_version,
    )


def write_report(report: Report, folder: str | Path) -> None:
    """Write `tokenizer_report.html`, which needs no other file, and the same as `.md`, `.json` and `.png`."""
    folder = Path(folder)
    _plot(report, folder / "tokenizer_report.png")
    plot = base64.b64encode((folder / "tokenizer_report.png").read_bytes()).decode()
    page = _environment().get_template("report.html.jinja").render(report=report, plot=plot)
    (folder / "tokenizer_report.html").write_text(page, encoding="utf-8")
    (folder / "tokenizer_report.md").write_text(markdown_of(page), encoding="utf-8")
    data = json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False)
    (folder / "tokenizer_report.json").write_text(data + "\n", encoding="utf-8")


def _load(name: str) -> PreTrainedTokenizerBase:
    if name == BUNDLED:  # to convert its weights first would take longer than all the rest
        converted = sorted(cache_dir().glob("SmolLM2-*/tokenizer.json"))
        if not converted:
            raise UserError(f"{name}: not converted yet")
        name = str(converted[-1].parent)
    return load_tokenizer(name, local_files_only=True)


def _corpus_texts(validation: "Dataset", text_column: str) -> dict[str, list[str]]:
    """The validation split, and each language in it, where the corpus says which those are."""
    rows = validation[:VALIDATION_DOCUMENTS]
    texts = {"validation split": rows[text_column]}
    languages = rows.get("language") or []
    found = sorted({language for language in languages if language})
    for language in found if len(found) > 1 else ():
        texts[f"validation split, {language}"] = [
            text for text, other in zip(rows[text_column], languages, strict=True) if other == language
        ]
    return texts


def _as_lists(texts: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [text] for name, text in texts.items()}


def _rows(tokenizers: Mapping[str, PreTrainedTokenizerBase], texts: Mapping[str, list[str]]) -> list[Row]:
    return [
        Row(
            name=name,
            bytes=sum(len(text.encode()) for text in group),
            bytes_per_token={other: bytes_per_token(tokenizer, group) for other, tokenizer in tokenizers.items()},
        )
        for name, group in texts.items()
    ]


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "BPE" and not model["byte_fallback"]:
        return "Byte-level BPE" if "Ġ" in model["vocab"] else "BPE over characters"
    name = "BPE over characters" if model["type"] == "BPE" else model["type"]
    return f"{name}, rare characters as bytes" if model["byte_fallback"] else name


def _spell(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """A token as text, or as the vocabulary has it where it is a part of a character."""
    text = tokenizer.decode([id])
    return tokenizer.convert_ids_to_tokens(id) if "\N{REPLACEMENT CHARACTER}" in text else text


def _changed_alone(tokenizer: PreTrainedTokenizerBase, characters: str) -> int:
    return len(lost_texts(tokenizer, {character: character for character in characters}))


def _plot(report: Report, file: Path) -> None:
    """A dot per tokenizer on a line per text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(report.groups.values())
    figure, axes = plt.subplots(
        len(groups),
        figsize=(8, 1.6 + 0.27 * sum(map(len, groups))),
        height_ratios=[len(rows) + 0.5 for rows in groups],
        sharex=True,
        layout="constrained",
    )
    for axis, rows in zip(axes, groups, strict=True):
        for place, row in enumerate(rows):
            values = row.bytes_per_token.values()
            axis.plot([min(values), max(values)], [place, place], color="#c8ced8", linewidth=2, zorder=1)
        # This tokenizer is drawn last, above the others, and larger
        for number, name in reversed(list(enumerate(report.tokenizers))):
            axis.scatter(
                [row.bytes_per_token[name] for row in rows],
                range(len(rows)),
                s=60 if name == NAME else 34,
                color=f"C{number}",
                label=name,
                zorder=2 + (name == NAME),
            )
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    most = max(max(row.bytes_per_token.values()) for row in chain.from_iterable(groups))
    axes[-1].set_xlim(0, 1.05 * most)
    axes[-1].set_xlabel("bytes per token (more is better)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _environment() -> "jinja2.Environment":
    environment = template_environment("hfchat.tokenization", autoescape=True)
    environment.filters |= {"visible": visible}
    return environment


def visible(token: str) -> str:
    """A token with its spaces and control characters made visible, and not too long."""
    shown = "".join(_picture(character) for character in token[:CHARACTERS_SHOWN])
    return shown if len(token) <= CHARACTERS_SHOWN else f"{shown}… ({len(token)} characters)"


def _picture(character: str) -> str:
    if character == " ":
        return "·"
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp"):
        return f"[U+{ord(character):04X}]"
    return character
