"""Guards in a YAML file: what to look for, where, and what to do about it.

The file is a list of guards, which work one after the other, each on what the one before it let through:

    - type: lexicon          # words of a list, disguised ones too
      applies_to: [answer]   # or [prompt]; both if it is left out
      action: redact         # block, redact or flag
    - type: pii              # mail and IP addresses, phone and card numbers
      action: redact
      kinds: [email, phone, card]
    - type: classifier       # any text-classification model
      model: unitary/toxic-bert
      label: toxic
      threshold: 0.8
      action: block
      message: I cannot help with that.
    - type: moderation       # any endpoint with OpenAI's /v1/moderations
      url: http://localhost:9000/v1
      action: flag

`redact` replaces what was found. `flag` only reports it. `block` ends an answer before what was found and says
`message` in its place; a prompt that is blocked gets only the message for an answer, without the model having seen it.

`release` says when the text of an answer is given out; the client never gets what the verdict removes:

- `settled`, of lexicon and pii: a word when it has ended and no continuation can change what was found up to there.
- `whole`: when the answer has ended. With `block`, nothing of a blocked answer comes out. The default of classifier
  and moderation, whose verdict is on the whole text: who streams sees nothing until the end.
- `sentence`, of these two: a sentence when the text up to its end was judged harmless; the answer ends before the
  first that was not. What is only bad as a whole comes out up to there, and each sentence costs a verdict. A prompt
  is whole already, so it is judged once.

Where nothing is removed, with `flag`, nothing is held back.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from hfchat.entries import Entry, explain
from hfchat.errors import UserError
from hfchat.safety.finders import Finder, LexiconFinder, PIIFinder
from hfchat.safety.guards import Action, Guard, Guards, Place
from hfchat.safety.judges import Classifier, Lenient, Moderation, Remembering, key_from_environment
from hfchat.safety.pii import KINDS, Kind
from hfchat.safety.streams import Judge, JudgedStream, SpanStream, Stream, Watch

DEFAULT = "default"  # the file that comes with hfchat


class _Guard(Entry):
    type: str
    name: str | None = None  # in logs and metrics; its type
    applies_to: list[Place] = Field(["prompt", "answer"], min_length=1)
    action: Action
    message: str = Field("I cannot help with that.", min_length=1)

    @model_validator(mode="after")
    def _keys_have_a_use(self) -> Self:
        for key, has_use, where in (
            ("message", self.action == "block", "action: block"),
            ("replacement", self.action == "redact", "action: redact"),
            ("release", self.action != "flag" and "answer" in self.applies_to, "answers that are changed"),
        ):
            if key in self.model_fields_set and not has_use:
                raise ValueError(f"'{key}' is only for {where}")
        return self

    def stream(self) -> Stream:
        raise NotImplementedError

    async def close(self) -> None: ...


class _SpanGuard(_Guard):
    replacement: str  # `{category}` in it is what was found
    release: Literal["settled", "whole"] = "settled"

    @functools.cached_property
    def finder(self) -> Finder:
        raise NotImplementedError

    def stream(self) -> Stream:
        if self.action == "flag":
            return Watch(self._categories)
        replace = None if self.action == "block" else self._replace
        return SpanStream(self.finder, replace, self.release == "whole")

    async def _categories(self, texts: Sequence[str]) -> list[list[str]]:
        found = await asyncio.to_thread(lambda: [self.finder.find(text) for text in texts])
        return [[span.category for span in spans] for spans in found]

    def _replace(self, category: str) -> str:
        return self.replacement.replace("{category}", category)


class LexiconGuard(_SpanGuard):
    """Words of a list (`hfchat.safety.lexicon`), disguised ones too."""

    type: Literal["lexicon"]
    replacement: str = "***"
    path: str | None = None
    categories: list[str] | None = Field(None, min_length=1)

    @functools.cached_property
    def finder(self) -> Finder:
        return LexiconFinder(self.path, self.categories)


class PIIGuard(_SpanGuard):
    """Personal data (`hfchat.safety.pii`)."""

    type: Literal["pii"]
    replacement: str = "[{category}]"
    kinds: list[Kind] = Field(list(KINDS), min_length=1)
    regions: list[str] = Field(["US", "GB"])

    @functools.cached_property
    def finder(self) -> Finder:
        try:
            return PIIFinder(self.kinds, self.regions)
        except ValueError as error:
            raise ValueError(f"regions: {error}") from error


class _JudgeGuard(_Guard):
    action: Literal["block", "flag"]  # there is no span to redact
    release: Literal["whole", "sentence"] = "whole"

    @functools.cached_property
    def judge(self) -> Judge:
        raise NotImplementedError

    def stream(self) -> Stream:
        return Watch(self.judge) if self.action == "flag" else JudgedStream(self.judge, self.release == "whole")


class ClassifierGuard(_JudgeGuard):
    """A `text-classification` model (`hfchat.safety.judges.Classifier`)."""

    type: Literal["classifier"]
    model: str
    label: str
    threshold: float = Field(0.5, gt=0, le=1)

    @functools.cached_property
    def judge(self) -> Judge:
        return Remembering(Classifier(self.model, self.label, self.threshold))


class ModerationGuard(_JudgeGuard):
    """A moderation endpoint (`hfchat.safety.judges.Moderation`)."""

    type: Literal["moderation"]
    url: str = Field(pattern="^https?://")
    model: str | None = None
    categories: list[str] | None = Field(None, min_length=1)
    threshold: float | None = Field(None, gt=0, le=1)
    api_key_env: str | None = None
    timeout_s: float = Field(10, gt=0)
    on_error: Literal["refuse", "allow"] = "refuse"

    @functools.cached_property
    def endpoint(self) -> Moderation:
        return Moderation(
            self.url,
            self.model,
            self.categories,
            self.threshold,
            key_from_environment(self.api_key_env),
            self.timeout_s,
        )

    @functools.cached_property
    def judge(self) -> Judge:
        judge = Remembering(self.endpoint)
        return Lenient(judge) if self.on_error == "allow" else judge

    async def close(self) -> None:
        await self.endpoint.close()


_TYPES: dict[str, type[_Guard]] = {
    "lexicon": LexiconGuard,
    "pii": PIIGuard,
    "classifier": ClassifierGuard,
    "moderation": ModerationGuard,
}


def load_guards(path: str | Path) -> Guards:
    """The guards of a YAML file, with all that they need loaded.

    Args:
        path: The file; `default` is the one that comes with hfchat.

    Raises:
        UserError: If the file cannot be read, or a guard in it is wrong. One line, which names the guard and the key.
    """
    try:
        file = resources.files("hfchat.safety") / "guards.yaml" if path == DEFAULT else Path(path)
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--guards {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--guards {path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list):
        raise UserError(f"--guards {path}: must be a YAML list of guards")
    try:
        return Guards([_guard(number, entry) for number, entry in enumerate(entries, start=1)])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _guard(number: int, entry: object) -> Guard:
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in _TYPES:
        raise UserError(f"guard {number}: 'type' must be one of {', '.join(_TYPES)}, not {kind!r}")
    try:
        return _TYPES[kind].model_validate(entry)
    except ValidationError as error:
        raise UserError(f"guard {number} ({kind}): {explain(error, _TYPES[kind])}") from error
