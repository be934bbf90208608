"""The models of an evaluation: weights on this machine, or a server that speaks the OpenAI API."""

import gc
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfchat.chat_template import check_chat_template, fingerprint
from hfchat.errors import UserError
from hfchat.evaluation.encoding import encode_prompt, encode_target, what_is_lost
from hfchat.evaluation.perplexity import continuation_losses, text_losses
from hfchat.evaluation.task import Prompt
from hfchat.generation import generate_answers, set_greedy
from hfchat.lineage import ancestry, describe
from hfchat.models import load_config, load_model, load_tokenizer, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_URL = re.compile(r"https?://")
_REMOTE_TIMEOUT = 600.0  # seconds for one answer


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: Without special tokens.
        tokens: How many, the end-of-turn token included.
        ended: Whether the model ended it itself, before `max_new_tokens`.
    """

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood of a target, in nats, over how many tokens.

    Attributes:
        lost: What of the target the tokens do not say, see `hfchat.evaluation.encoding.what_is_lost`.
    """

    nats: float
    tokens: int
    lost: str | None = None


class Model:
    """A model of an evaluation.

    Attributes:
        name: Short, of letters, digits, `-`, `_` and `.`; file names are made of it.
        path: As it was given.
        batch_size: Examples at a time; an out-of-memory halves it.
        gives_losses: Whether it tells how likely a given text is.
    """

    gives_losses = True

    def __init__(self, name: str, path: str, batch_size: int):
        self.name = name
        self.path = path
        self.batch_size = batch_size

    def describe(self) -> dict[str, Any]:
        """Identify it, for the lineage and `results.json`: `{"path", "kind", "sha256", "licenses", ...}`."""
        raise NotImplementedError

    def ancestry(self) -> list[dict[str, Any]]:
        """The lineages of what made it, see `hfchat.lineage.ancestry`; empty if they are not known here."""
        return []

    @property
    def parameters(self) -> int | None:
        """How many it has; None if it is not loaded."""
        return None

    @property
    def context(self) -> int | None:
        """The most tokens that it reads; None if that is not known, or has no bound."""
        return None

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        """Refuse an example that the model cannot read, and give its length in tokens, 0 if unknown.

        Raises:
            UserError: If it is longer than the model's context, or the template does not fit it. Names `place`.
        """
        raise NotImplementedError

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answer]:
        """Answer each prompt greedily.

        Args:
            prompts: Messages, or texts to continue.
            max_new_tokens: Longest answer.
            stop: Texts that end an answer, and are no part of it.
        """
        raise NotImplementedError

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        """The loss of each target after its prompt, see `hfchat.evaluation.encoding.encode_target`.

        Raises:
            UserError: If the model gives no likelihoods.
        """
        raise NotImplementedError

    def text_losses(self, texts: Sequence[str], window: int, stride: int) -> list[Loss]:
        """The loss of texts of any length, see `hfchat.evaluation.perplexity.text_losses`."""
        raise NotImplementedError

    def free(self) -> None:
        """Give its memory back."""


class LocalModel(Model):
    """Weights on this machine: a folder, an adapter, a Hub id. They are loaded when they are first needed.

    Attributes:
        generation_config: The model's own, since it was loaded; `answer` puts another in its place.

    Args:
        name: See `Model`.
        path: What `hfchat.models.resolve` takes.
        batch_size: See `Model`.
        dtype: Of the weights: `"bfloat16"`.
        allow_template_mismatch: See `check_chat_template`.
    """

    def __init__(self, name: str, path: str, batch_size: int, dtype: str, allow_template_mismatch: bool = False):
        super().__init__(name, path, batch_size)
        self.folder = resolve(path)
        self.dtype = dtype
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.folder)
        self._allow_mismatch = allow_template_mismatch
        self._template_is_right = False  # once it was checked
        self._model: PreTrainedModel | None = None

    @property
    def is_adapter(self) -> bool:
        return (Path(self.folder) / "adapter_config.json").is_file()

    @property
    def model(self) -> "PreTrainedModel":
        """The weights, on this process's accelerator if there is one; an adapter is merged into its base."""
        if self._model is None:
            model = self._load()
            if self.tokenizer.chat_template:
                check_chat_template(self.tokenizer, model, allow_mismatch=self._allow_mismatch)
            self._model = model.to(_device()).eval()
            self.generation_config = model.generation_config
        return self._model

    def _load(self) -> "PreTrainedModel":
        dtype = getattr(torch, self.dtype)
        if not self.is_adapter:
            return load_model(self.folder, dtype=dtype)
        from hfchat.adapters import load_base_of, put_adapter, round_weights

        adapter = Path(self.folder)
        merged = put_adapter(load_base_of(adapter), adapter, self.tokenizer).merge_and_unload()
        round_weights(merged, {}, dtype)
        return merged

    def free(self) -> None:
        self._model = None
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    def describe(self) -> dict[str, Any]:
        kind = "adapter" if self.is_adapter else "folder" if Path(self.folder).is_dir() else "hub"
        template = fingerprint(self.tokenizer) if self.tokenizer.chat_template else None
        return {
            **describe(self.folder),
            "path": self.path,
            "kind": kind,
            "dtype": self.dtype,
            "chat_template": template,
        }

    def ancestry(self) -> list[dict[str, Any]]:
        return ancestry(self.folder)

    @property
    def parameters(self) -> int | None:
        return None if self._model is None else self._model.num_parameters()

    @cached_property
    def context(self) -> int | None:
        name = self.folder
        if self.is_adapter:
            from hfchat.adapters import read_base

            name = read_base(Path(self.folder))["model_name_or_path"]
        return getattr(load_config(name).get_text_config(), "max_position_embeddings", None)

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        if not isinstance(prompt, str) and not self._template_is_right:
            check_chat_template(self.tokenizer, allow_mismatch=self._allow_mismatch)
            self._template_is_right = True
        length = len(encode_prompt(self.tokenizer, prompt)) + max_new_tokens
        for target in targets:
            length = max(length, sum(map(len, encode_target(self.tokenizer, prompt, target, place))))
        if self.context is not None and length > self.context:
            raise UserError(
                f"{place}: its prompt and answer take {length} tokens, but {self.path} reads {self.context}; "
                "lower max_new_tokens or remove the row"
            )
        return length

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answer]:
        set_greedy(self.model, self.tokenizer, max_new_tokens)
        answers = generate_answers(self.model, [encode_prompt(self.tokenizer, prompt) for prompt in prompts])
        return [self._read(ids, stop) for ids in answers]

    def _read(self, ids: list[int], stop: Sequence[str]) -> Answer:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cuts = [position for part in stop if (position := text.find(part)) >= 0]
        ended = bool(cuts) or ids[-1] in self.model.generation_config.eos_token_id
        return Answer(text[: min(cuts, default=None)], len(ids), ended)

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        pairs = [
            encode_target(self.tokenizer, prompt, target, "") for prompt, target in zip(prompts, targets, strict=True)
        ]
        nats = continuation_losses(self.model, pairs)
        lost = [what_is_lost(self.tokenizer, target) for target in targets]
        return [Loss(value, len(target), reason) for value, (_, target), reason in zip(nats, pairs, lost, strict=True)]

    def text_losses(self, texts: Sequence[str], window: int, stride: int) -> list[Loss]:
        nats, tokens = text_losses(self.model, self.tokenizer, texts, self.batch_size, window, stride)
        return list(map(Loss, nats, tokens, (what_is_lost(self.tokenizer, text) for text in texts)))


class RemoteModel(Model):
    """A chat model behind an OpenAI-compatible URL. The key is `OPENAI_API_KEY`, where the server wants one.

    Args:
        name: See `Model`.
        path: `https://host/v1#model`; without `#model` the only one that the server has.
        batch_size: Questions that are asked at a time.
    """

    gives_losses = False

    def __init__(self, name: str, path: str, batch_size: int):
        super().__init__(name, path, batch_size)
        url, _, self._model_name = path.partition("#")
        self._client = openai_client(url)
        if not self._model_name:
            self._model_name = only_model(self._client, url)

    def describe(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": "remote",
            "sha256": f"remote:{self.path.partition('#')[0]}#{self._model_name}",
            "licenses": ["unknown"],
            "dtype": None,
            "chat_template": None,
        }

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        if isinstance(prompt, str):
            raise UserError(f"{place}: a text to continue, but {self.path} takes only messages; leave the model out")
        return 0

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answer]:
        def ask(prompt: Prompt) -> Answer:
            completion = chat(self._client, self._model_name, prompt, max_new_tokens, stop)
            choice = completion.choices[0]
            tokens = completion.usage.completion_tokens if completion.usage else 0
            return Answer(choice.message.content or "", tokens, choice.finish_reason != "length")

        with ThreadPoolExecutor(self.batch_size) as threads:
            return list(threads.map(ask, prompts))

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        raise UserError(f"{self.path}: the OpenAI API gives no likelihoods of given texts; leave the model out")


def open_model(name: str, path: str, batch_size: int, dtype: str, allow_template_mismatch: bool = False) -> Model:
    """A model by what its path is: a URL, or what `hfchat.models.resolve` takes."""
    if _URL.match(path):
        return RemoteModel(name, path, batch_size)
    return LocalModel(name, path, batch_size, dtype, allow_template_mismatch)


def openai_client(url: str) -> Any:
    """A client of an OpenAI-compatible server, which tries again what failed for the time being."""
    import openai

    return openai.OpenAI(
        base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=_REMOTE_TIMEOUT, max_retries=4
    )


def only_model(client: Any, url: str) -> str:
    """The name of the model that a server has.

    Raises:
        UserError: If it cannot be reached, or has not exactly one.
    """
    import openai

    try:
        names = [model.id for model in client.with_options(timeout=10, max_retries=1).models.list()]
    except openai.OpenAIError as error:
        raise UserError(f"{url}: cannot be asked for its models: {_line(error)}") from error
    if len(names) != 1:
        raise UserError(f"{url}: has {len(names)} models; name one: {url}#{names[0] if names else 'model'}")
    return names[0]


def chat(client: Any, model: str, prompt: Prompt, max_new_tokens: int, stop: Sequence[str] = ()) -> Any:
    """One completion at temperature 0.

    Raises:
        UserError: If the server does not give one.
    """
    import openai

    options = {"stop": list(stop)} if stop else {}
    try:
        return client.chat.completions.create(
            model=model, messages=prompt, max_tokens=max_new_tokens, temperature=0, **options
        )
    except openai.OpenAIError as error:
        raise UserError(f"{client.base_url}: {model} does not answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300]


def _device() -> torch.device:
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, index)
