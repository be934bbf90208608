"""A model behind a URL: any server that speaks the OpenAI API."""

import os
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from hfchat.chat import CallPart, Chat, Json
from hfchat.errors import UserError
from hfchat.evaluation.model import EvaluatedModel, Loss, Prompt, Reply
from hfchat.messages import arguments_as_text, with_arguments
from hfchat.results import COMPUTED_BY, ModelIdentity

_TIMEOUT = 600.0  # seconds for one answer
_REMOTE = "remote"


class RemoteModel(EvaluatedModel):
    """A chat model behind an OpenAI-compatible URL. The key is `OPENAI_API_KEY`, where the server wants one.

    Args:
        name: See `EvaluatedModel`.
        path: `https://host/v1#model`; without `#model` the only one that the server has.
        batch_size: Questions that are asked at a time.
    """

    gives_losses = False
    is_served = True

    def __init__(self, name: str, path: str, batch_size: int):
        super().__init__(name, path, batch_size)
        url, _, self._model_name = path.partition("#")
        self._client = openai_client(url)
        if not self._model_name:
            self._model_name = only_model(self._client, url)

    def describe(self) -> ModelIdentity:
        identity = f"remote:{self.path.partition('#')[0]}#{self._model_name}"
        return ModelIdentity(
            self.path, identity, ["unknown"], "remote", dtype=None, chat_template=None, engine=_REMOTE
        )

    def computed_by(self, needs_weights: bool) -> str:
        return f"{COMPUTED_BY}{_REMOTE}"

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        if isinstance(prompt, str):
            raise UserError(f"{place}: a text to continue, but {self.path} takes only messages; leave the model out")
        return 0

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Reply]:
        def ask(prompt: Prompt) -> Reply:
            completion = chat(self._client, self._model_name, prompt, max_new_tokens, stop)
            choice = completion.choices[0]
            tokens = completion.usage.completion_tokens if completion.usage else 0
            return Reply(choice.message.content or "", tokens, choice.finish_reason != "length")

        return list(map(ask, prompts))

    def refusal_of_chats(self, chats: Sequence[Chat], project_template: bool) -> str | None:
        return (
            "a server has its chat template, and `project_template` cannot give it another"
            if project_template
            else None
        )

    def check_chat(self, chat: Chat, max_new_tokens: int, project_template: bool, place: str) -> int:
        return 0

    def answer_chats(self, chats: Sequence[Chat], max_new_tokens: int, project_template: bool) -> list[Reply]:
        return [self._answer_chat(chat, max_new_tokens) for chat in chats]

    def _answer_chat(self, asked: Chat, max_new_tokens: int) -> Reply:
        options: dict[str, object] = {}
        if asked.tools:
            options |= {"tools": list(asked.tools), "tool_choice": asked.tool_choice}
        if asked.response_format is not None:
            options["response_format"] = asked.response_format
        messages = [with_arguments(message, arguments_as_text) for message in asked.messages]
        completion = chat(self._client, self._model_name, messages, max_new_tokens, options=options)
        choice, usage = completion.choices[0], completion.usage
        calls = tuple(
            CallPart(index, call.function.name, call.function.arguments)
            for index, call in enumerate(choice.message.tool_calls or ())
        )
        tokens = usage.completion_tokens if usage else 0
        return Reply(choice.message.content or "", tokens, choice.finish_reason != "length", calls)

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        raise UserError(f"{self.path}: the OpenAI API gives no likelihoods of given texts; leave the model out")


def openai_client(url: str) -> Any:
    """A client of an OpenAI-compatible server, which tries again what failed for the time being."""
    import openai

    return openai.OpenAI(
        base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=_TIMEOUT, max_retries=4
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


def chat(
    client: Any,
    model: str,
    prompt: Prompt | Sequence[Json],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    options: Json = MappingProxyType({}),
) -> Any:
    """One completion at temperature 0; `options` are further fields of the request.

    Raises:
        UserError: If the server does not give one.
    """
    import openai

    fields: Json = {
        "max_tokens": max_new_tokens,
        "temperature": 0,
        **({"stop": list(stop)} if stop else {}),
        **options,
    }
    try:
        return client.chat.completions.create(model=model, messages=prompt, **fields)
    except openai.OpenAIError as error:
        raise UserError(f"{client.base_url}: {model} does not answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300]
