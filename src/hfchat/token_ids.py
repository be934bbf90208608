"""From conversations to token ids, so that nothing in them can end a turn or begin another one.

Training, evaluation, the certificate and the server encode with this, so that a model reads what it was trained on.
"""

import functools
import json
import re
import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfchat.chat import Json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

_SPELLINGS: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Spelling]" = weakref.WeakKeyDictionary()


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    tools: Sequence[Any] | None = None,
    variables: Json | None = None,
    *,
    add_generation_prompt: bool = False,
) -> list[int]:
    """The ids of a conversation by the tokenizer's chat template and, if asked for, of the beginning of its answer.

    They are those of `apply_chat_template`, except where the conversation, its tools and further variables of the
    template included, has the text of a special token: that becomes ordinary tokens which spell it. Special tokens are
    the template's alone.
    (`apply_chat_template` has had `sanitize_control_tokens` since transformers 5.24, but not together with the
    assistant's mask, which the training needs.)

    Raises:
        jinja2.TemplateError, ValueError: If the template refuses the conversation, or if its text has a special token
            and the tokenizer is not a fast one.
    """
    options: dict[str, Any] = {"tools": tools, **(variables or {})}
    spelling = _spelling_of(tokenizer)
    is_needed = spelling.is_needed([messages, options])
    if is_needed:
        messages, options = spelling.hide(messages), spelling.hide(options)
    options["add_generation_prompt"] = add_generation_prompt
    if not is_needed:
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return spelling.encode(rendered, [False] * len(rendered))[0]


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    """The ids of documents, which are no conversations: the text of a special token is spelled in ordinary ones.

    Args:
        tokenizer: Another thread must not use it meanwhile: transformers keeps in it how special tokens are split.
        texts: Documents.
        add_special_tokens: Put those around each that the tokenizer puts around a text.
    """
    options = {"add_special_tokens": add_special_tokens, "split_special_tokens": True}
    rows = tokenizer(list(texts), **options)["input_ids"]
    special = special_tokens(tokenizer).keys() - {tokenizer.unk_token_id}
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    if model is None:
        return rows
    for number, text in enumerate(texts):
        if special.isdisjoint(rows[number]):
            continue
        # Added by the tokenizer, or from a model (Unigram) that has special tokens among the pieces of its texts.
        encoded = tokenizer(text, return_offsets_mapping=True, **options)
        ids: list[int] = []
        for id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            parts = (text[start : start + 1], text[start + 1 : end]) if id in special and start < end else ()
            ids += [token.id for part in parts for token in model.tokenize(part)] if parts else [id]
        rows[number] = ids
    return rows


def supervise_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, tools: Sequence[Any] | None = None
) -> tuple[list[int], list[bool]]:
    """As `encode_conversation`, and whether each id is what the assistant says by the template's generation marks."""
    spelling = _spelling_of(tokenizer)
    is_needed = spelling.is_needed([messages, tools])
    if is_needed:
        messages, tools = spelling.hide(messages), spelling.hide(tools)
    encoded = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": is_needed},
    )
    ids, supervised = encoded["input_ids"], list(map(bool, encoded["assistant_masks"]))
    if not is_needed:
        return ids, supervised
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    characters = [False] * len(rendered)
    for (start, end), is_supervised in zip(encoded["offset_mapping"], supervised, strict=True):
        if is_supervised:
            characters[start:end] = [True] * (end - start)
    return spelling.encode(rendered, characters)


def prepare_to_spell(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Do now what the first special token in a text needs (a second for a large vocabulary), so that nobody waits."""
    if tokenizer.is_fast:
        _ = _spelling_of(tokenizer).speller


def _spelling_of(tokenizer: "PreTrainedTokenizerBase") -> "_Spelling":
    spelling = _SPELLINGS.get(tokenizer)
    if spelling is None or spelling.size != len(tokenizer):  # tokens were added to it
        spelling = _SPELLINGS[tokenizer] = _Spelling(tokenizer)
    return spelling


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The texts of a tokenizer's special tokens by their ids."""
    return {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}


class _Spelling:
    """How the text of a tokenizer's special tokens is spelled in ordinary ones."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.size = len(tokenizer)
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None  # not itself: it is held weakly
        special = special_tokens(tokenizer)
        self._special = sorted(special.values(), key=len, reverse=True)  # so that the longest of two is found
        self._ids = set(special)
        alternatives = "|".join(map(re.escape, self._special)) or "(?!)"  # which is found nowhere
        self._pattern = re.compile(alternatives)
        # Letters, which no template escapes, that nobody can guess, so that no text has them.
        self._mark = f"x{secrets.token_hex(8)}z"
        self._either = re.compile(f"{self._mark}(\\d+){self._mark}|{alternatives}")

    def is_needed(self, value: Any) -> bool:
        """Whether a text in it has that of a special token."""
        if isinstance(value, str):
            return self._pattern.search(value) is not None
        if isinstance(value, Mapping):
            return self.is_needed([*value.keys(), *value.values()])
        return isinstance(value, list | tuple) and any(map(self.is_needed, value))

    def hide(self, value: Any) -> Any:
        """The same with stand-ins, so that the special tokens that the template writes are the only ones."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._stand_in(found[0]), value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return list(map(self.hide, value)) if isinstance(value, list | tuple) else value

    def encode(self, rendered: str, characters: Sequence[bool]) -> tuple[list[int], list[bool]]:
        """Encode a text in which stand-ins are text, and special tokens are themselves.

        Args:
            rendered: By the template.
            characters: Whether each is supervised.

        Returns:
            The ids, and whether each is supervised.
        """
        # Here both change places: what stood in becomes the text that it stood for, and the template's own tokens
        # get stand-ins, which are the only special tokens that the speller knows.
        parts, flags, end = [], [], 0
        for found in self._either.finditer(rendered):
            put = self._special[int(found[1])] if found[1] else self._stand_in(found[0])
            parts += [rendered[end : found.start()], put]
            flags += [*characters[end : found.start()], *[characters[found.start()]] * len(put)]
            end = found.end()
        text = "".join([*parts, rendered[end:]])
        flags += characters[end:]
        speller, own = self.speller
        encoding = speller.encode(text, add_special_tokens=False)
        ids, supervised = [], []
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # Some models (Unigram) have their special tokens among the pieces that they make text of.
            spelled = self._split(text[start:end]) if id in self._ids and id not in own else [own.get(id, id)]
            ids += spelled
            supervised += [any(flags[start:end])] * len(spelled)
        return ids, supervised

    @functools.cached_property
    def speller(self) -> tuple["Tokenizer", dict[int, int]]:
        """The tokenizer with stand-ins for its special tokens, and the ids that its own added tokens stand for."""
        from tokenizers import Tokenizer

        if self._backend is None:
            raise ValueError("a text has a special token in it, and only a fast tokenizer can spell that as text")
        description = json.loads(self._backend.to_str())
        added = description["added_tokens"]
        for token in added:
            if token["content"] in self._special:
                token["content"] = self._stand_in(token["content"])
        speller = Tokenizer.from_str(json.dumps(description))
        speller.no_truncation()  # which the last call of the tokenizer may have left behind
        speller.no_padding()
        ids = ((speller.token_to_id(token["content"]), token["id"]) for token in added)
        return speller, {id: own for id, own in ids if id is not None}

    def _stand_in(self, special: str) -> str:
        return f"{self._mark}{self._special.index(special)}{self._mark}"

    def _split(self, text: str) -> list[int]:
        """The ids of the text of a special token, in parts that are not special tokens."""
        speller, _ = self.speller
        return [id for part in (text[:1], text[1:]) for id in speller.encode(part, add_special_tokens=False).ids]
