"""What a task asks of a model, and what it gets back: the interface that every kind of model has."""

from collections.abc import Sequence
from dataclasses import dataclass

from hfchat.chat import CallPart, Chat, Json
from hfchat.lineage import Ancestor
from hfchat.results import ModelIdentity

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: Without special tokens.
        tokens: How many, the end-of-turn token included.
        ended: Whether the model ended it itself, before `max_new_tokens`; None where that is not known.
        calls: The tool calls, each of them whole, which are no part of `text`.
    """

    text: str
    tokens: int
    ended: bool | None
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood of a target, in nats, over how many tokens.

    Attributes:
        lost: What of the target the tokens do not say, see `hfchat.evaluation.encoding.what_is_lost`.
    """

    nats: float
    tokens: int
    lost: str | None = None


class EvaluatedModel:
    """A model of an evaluation.

    Attributes:
        name: Short, of letters, digits, `-`, `_` and `.`; file names are made of it.
        path: As it was given.
        batch_size: Examples at a time; an out-of-memory halves it.
        gives_losses: Whether it tells how likely a given text is.
        is_served: Whether a server generates the answers. Up to `batch_size` threads ask it at a time.
    """

    gives_losses = True
    is_served = False

    def __init__(self, name: str, path: str, batch_size: int):
        self.name = name
        self.path = path
        self.batch_size = batch_size

    def describe(self) -> ModelIdentity:
        """Identify it, for the lineage and `results.json`."""
        raise NotImplementedError

    def computed_by(self, needs_weights: bool) -> str:
        """The end of a signature: what computes, in which type of weights.

        Args:
            needs_weights: Whether it is about what only loaded weights give, see `Task`, or about answers.

        Returns:
            `"engine:transformers|weights:bfloat16"`.
        """
        raise NotImplementedError

    def ancestry(self) -> list[Ancestor]:
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

    def prepare(self) -> None:
        """Make what answers need beside the model, before any model is asked. Files are kept, and made once."""

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Reply]:
        """Answer each prompt greedily.

        Args:
            prompts: Messages, or texts to continue.
            max_new_tokens: Longest answer.
            stop: Texts that end an answer, and are no part of it.
        """
        raise NotImplementedError

    def refusal_of_chats(self, chats: Sequence[Chat], project_template: bool) -> str | None:
        """Say why it cannot be asked what `answer_chats` would ask it; None if it can."""
        raise NotImplementedError

    def check_chat(self, chat: Chat, max_new_tokens: int, project_template: bool, place: str) -> int:
        """As `check`, of a chat."""
        raise NotImplementedError

    def answer_chats(self, chats: Sequence[Chat], max_new_tokens: int, project_template: bool) -> list[Reply]:
        """Answer each chat greedily, with calls where it has tools.

        What an answer may be is bound where the chat binds it: by strict functions, `tool_choice`, `response_format`.

        Args:
            chats: What is asked.
            max_new_tokens: Longest answer.
            project_template: Ask with the project's chat template where the model's own writes no tools.
        """
        raise NotImplementedError

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        """The loss of each target after its prompt, see `hfchat.evaluation.encoding.encode_target`.

        Raises:
            UserError: If the model gives no likelihoods.
        """
        raise NotImplementedError

    def check_answers(self, chat: Chat, answers: Sequence[Json], place: str) -> int:
        """As `check`, of a chat with the answers whose losses are asked for."""
        raise NotImplementedError

    def answer_losses(self, chats: Sequence[Chat], answers: Sequence[Json]) -> list[Loss]:
        """The loss of each answer, a message that may call functions, after its chat.

        Raises:
            UserError: If the model gives no likelihoods.
        """
        raise NotImplementedError

    def text_losses(self, texts: Sequence[str], window: int, stride: int) -> list[Loss]:
        """The loss of texts of any length, see `hfchat.evaluation.perplexity.text_losses`."""
        raise NotImplementedError

    def free(self) -> None:
        """Give its memory back."""
