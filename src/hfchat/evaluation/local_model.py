"""A model whose weights are on this machine."""

import gc
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.chat import Chat, Json
from hfchat.chat_template import check_chat_template, fingerprint
from hfchat.errors import UserError
from hfchat.evaluation.chats import ChatReader, GrammarMask
from hfchat.evaluation.encoding import encode_prompt, encode_target, what_is_lost
from hfchat.evaluation.model import EvaluatedModel, Loss, Prompt, Reply
from hfchat.evaluation.perplexity import continuation_losses, text_losses
from hfchat.generation import generate_answers, load_generation_config, set_greedy, stop_token_ids
from hfchat.lineage import Ancestor, ancestry, describe
from hfchat.models import load_config, load_model, load_tokenizer, resolve
from hfchat.results import COMPUTED_BY, ModelIdentity
from hfchat.structured.masks import GrammarCompiler

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TRANSFORMERS = "transformers"


class LocalModel(EvaluatedModel):
    """Weights on this machine: a folder, an adapter, a Hub id. They are loaded when they are first needed.

    Attributes:
        generation_config: The model's own, since it was loaded; `answer` puts another in its place.

    Args:
        name: See `EvaluatedModel`.
        path: What `hfchat.models.resolve` takes.
        batch_size: See `EvaluatedModel`.
        dtype: Type of the weights, e.g. `"bfloat16"`.
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
        self._readers: dict[bool, ChatReader] = {}

    @property
    def is_adapter(self) -> bool:
        return (Path(self.folder) / "adapter_config.json").is_file()

    @property
    def model(self) -> "PreTrainedModel":
        """The weights, on this process's accelerator if there is one; an adapter is merged into its base."""
        if self._model is None:
            model = self._load()
            if self.tokenizer.chat_template:
                check_chat_template(self.tokenizer, model.config, allow_mismatch=self._allow_mismatch)
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

    def describe(self) -> ModelIdentity:
        kind = "adapter" if self.is_adapter else "folder" if Path(self.folder).is_dir() else "hub"
        template = fingerprint(self.tokenizer) if self.tokenizer.chat_template else None
        content = describe(self.folder)
        return ModelIdentity(
            self.path, content["sha256"], content["licenses"], kind, self.dtype, template, TRANSFORMERS, self.dtype
        )

    def computed_by(self, needs_weights: bool) -> str:
        return f"{COMPUTED_BY}{TRANSFORMERS}|weights:{self.dtype}"

    def ancestry(self) -> list[Ancestor]:
        return ancestry(self.folder)

    @property
    def parameters(self) -> int | None:
        return None if self._model is None else self._model.num_parameters()

    @cached_property
    def base(self) -> str:
        """What its weights are, resolved; of an adapter that is its base."""
        if not self.is_adapter:
            return self.folder
        from hfchat.adapters import read_base

        return resolve(read_base(Path(self.folder))["model_name_or_path"])

    @cached_property
    def _config(self) -> "PreTrainedConfig":
        return load_config(self.base)

    @cached_property
    def context(self) -> int | None:
        return getattr(self._config.get_text_config(), "max_position_embeddings", None)

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        if not isinstance(prompt, str):
            self._check_template()
        length = len(encode_prompt(self.tokenizer, prompt)) + max_new_tokens
        for target in targets:
            length = max(length, sum(map(len, encode_target(self.tokenizer, prompt, target, place))))
        return self._fitting(length, place)

    def _check_template(self) -> None:
        if self._template_is_right:
            return
        # First by itself: a folder without a template need not have a configuration.
        check_chat_template(self.tokenizer, allow_mismatch=self._allow_mismatch)
        check_chat_template(self.tokenizer, self._config, allow_mismatch=self._allow_mismatch)
        self._template_is_right = True

    def _fitting(self, length: int, place: str) -> int:
        if self.context is not None and length > self.context:
            raise UserError(
                f"{place}: its prompt and answer take {length} tokens, but {self.path} reads {self.context}; "
                "lower max_new_tokens or remove the row"
            )
        return length

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Reply]:
        set_greedy(self.model, self.tokenizer, max_new_tokens)
        answers = generate_answers(self.model, [encode_prompt(self.tokenizer, prompt) for prompt in prompts])
        return [self._read(ids, stop) for ids in answers]

    def _read(self, ids: list[int], stop: Sequence[str]) -> Reply:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cuts = [position for part in stop if (position := text.find(part)) >= 0]
        return Reply(text[: min(cuts, default=None)], len(ids), bool(cuts) or self._ended(ids))

    def _ended(self, ids: list[int]) -> bool:
        return ids[-1] in self.model.generation_config.eos_token_id

    def reader(self, project_template: bool) -> ChatReader:
        """What encodes chats and reads the answers."""
        if project_template not in self._readers:
            self._readers[project_template] = ChatReader(self.tokenizer, project_template)
        return self._readers[project_template]

    def refusal_of_chats(self, chats: Sequence[Chat], project_template: bool) -> str | None:
        return self.reader(project_template).refusal(chats)

    def check_chat(self, chat: Chat, max_new_tokens: int, project_template: bool, place: str) -> int:
        self._check_template()
        return self._fitting(len(self.reader(project_template).encode(chat)) + max_new_tokens, place)

    def answer_chats(self, chats: Sequence[Chat], max_new_tokens: int, project_template: bool) -> list[Reply]:
        reader = self.reader(project_template)
        prompts = [reader.encode(chat) for chat in chats]
        grammars = [reader.grammar(chat, ids) for chat, ids in zip(chats, prompts, strict=True)]
        set_greedy(self.model, reader.tokenizer, max_new_tokens)
        bound = any(grammar is not None for grammar in grammars)
        longest = max(map(len, prompts))
        masks = [GrammarMask(self._grammars, grammars, longest, self._ends)] if bound else []
        answers = generate_answers(self.model, prompts, masks)
        replies = []
        for chat, prompt, ids in zip(chats, prompts, answers, strict=True):
            text, calls = reader.read(chat, prompt, reader.decode(ids))
            replies.append(Reply(text, len(ids), self._ended(ids), calls))
        return replies

    @cached_property
    def _ends(self) -> set[int]:
        return stop_token_ids(load_generation_config(self.base), self.tokenizer)

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.model.get_output_embeddings().out_features, self._ends)

    def check_answers(self, chat: Chat, answers: Sequence[Json], place: str) -> int:
        self._check_template()
        pairs = [self.reader(False).encode_answer(chat, answer, place) for answer in answers]
        return self._fitting(max(len(context) + len(ids) for context, ids in pairs), place)

    def answer_losses(self, chats: Sequence[Chat], answers: Sequence[Json]) -> list[Loss]:
        encode = self.reader(False).encode_answer
        pairs = [encode(chat, answer, "") for chat, answer in zip(chats, answers, strict=True)]
        nats = continuation_losses(self.model, pairs)
        return [Loss(value, len(ids)) for value, (_, ids) in zip(nats, pairs, strict=True)]

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


def _device() -> torch.device:
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, index)
