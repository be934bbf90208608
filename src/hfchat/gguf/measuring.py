"""Holds a GGUF file against the model that it was made of: `python -m hfchat.gguf.measuring REQUEST`.

transformers computes what the model says, in float32 where there is room for it, and llama.cpp what the file says, so
that what its kernels round is in the price too.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from tqdm import tqdm

from hfchat.behaviour import MAX_NEW_TOKENS, Behaviour, Prompts, behaviour, compare, context_length
from hfchat.errors import UserError
from hfchat.generation import answering, generate_answers
from hfchat.gguf.computation import Computation
from hfchat.gguf.price import Price, Request
from hfchat.gguf.process import as_process
from hfchat.models import load_model, load_tokenizer
from hfchat.processes import available_bytes
from hfchat.safety.refusals import is_refusal, requests_to_refuse
from hfchat.token_ids import Messages, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REFUSAL_TOKENS = 20  # of an answer, in which a refusal shows
_ROOM = 1.2  # times the weights: what computing needs beside them


@dataclass
class _Said:
    """What the evaluated model says.

    Attributes:
        behaviour: To the conversations.
        answers: Token ids of its answers to the requests that ought to be refused.
        bits_per_byte: What the conversations cost it.
    """

    behaviour: Behaviour
    answers: list[list[int]]
    bits_per_byte: float


def measure(folder: Path, files: Mapping[str, Path], conversations: Sequence[Messages]) -> Iterator[Price]:
    """What the weights of some files cost.

    Args:
        folder: The model.
        files: Made of it, by the types of their weights.
        conversations: Held-out ones.

    Raises:
        UserError: If there is no memory for both, or if a file is of another model.
    """
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), dtype=_dtype_that_fits(folder, files.values())).eval()
    prompts = Prompts.render(conversations, tokenizer, context_length(model.config))
    encoded = (
        encode_conversation(tokenizer, [{"role": "user", "content": request}], add_generation_prompt=True)
        for request in requests_to_refuse()
    )
    requests = [ids for ids in encoded if len(ids) + _REFUSAL_TOKENS <= context_length(model.config)]
    with tqdm(total=2 + 3 * len(files), unit="step") as bar:
        bar.set_description("Price: the model")
        said = _ask(model, tokenizer, prompts, requests, bar)
        for weights, file in files.items():
            bar.set_description(f"Price: {weights}")
            yield _price(file, weights, said, model, tokenizer, prompts, requests, bar)


def _ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompts,
    requests: list[list[int]],
    bar: "tqdm[NoReturn]",
) -> _Said:
    said = behaviour(model, prompts, tokenizer)
    bar.update()
    with answering(model, tokenizer, _REFUSAL_TOKENS, [tokenizer.eos_token_id]):
        answers = generate_answers(model, requests) if requests else []
    bar.update()
    return _Said(said, answers, _bits_per_byte(said.logits, prompts, tokenizer))


def _price(
    file: Path,
    weights: str,
    said: _Said,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompts,
    requests: list[list[int]],
    bar: "tqdm[NoReturn]",
) -> Price:
    other, end = Computation(file), tokenizer.eos_token_id
    rows = len(model.get_output_embeddings().weight)
    if other.vocabulary_size != rows:
        raise UserError(
            f"{file}: has {other.vocabulary_size} tokens, and {model.name_or_path} {rows}, so it is of another model; "
            "delete it and convert the model again"
        )
    logits = [other.logits(ids) for ids in prompts.sequences]
    bar.update()
    says = Behaviour(logits, other.answers(prompts.prompts, MAX_NEW_TOKENS, end))
    bar.update()
    answers = other.answers(requests, _REFUSAL_TOKENS, end) if requests else []
    bar.update()
    return Price(
        weights=weights,
        bytes=file.stat().st_size,
        evaluated_bytes=_stored_bytes(Path(model.name_or_path)),
        computed_in=str(model.dtype).removeprefix("torch."),
        conversations=len(prompts.messages),
        tokens=sum(map(len, prompts.sequences)),
        conversations_sha256=prompts.sha256(),
        difference=compare(said.behaviour, says, prompts, model, tokenizer),
        bits_per_byte_before=said.bits_per_byte,
        bits_per_byte=_bits_per_byte(logits, prompts, tokenizer),
        requests=len(requests),
        refusals_before=_refusals(said.answers, tokenizer),
        refusals=_refusals(answers, tokenizer),
        tokenized_otherwise=_tokenized_otherwise(other, prompts, tokenizer),
    )


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _dtype_that_fits(folder: Path, files: Iterable[Path]) -> torch.dtype | str:
    """Float32 if there is room for it beside the largest file, else the stored type."""
    stored = _stored_bytes(folder)
    available = available_bytes() - max(file.stat().st_size for file in files)
    # Stored in 16 bits, as nearly all are; what is stored in float32 takes no more room then.
    if 2 * stored * _ROOM <= available:
        return torch.float32
    if stored * _ROOM <= available:
        return "auto"
    raise UserError(
        f"{folder}: its price cannot be measured: it needs {stored * _ROOM / 1e9:.1f} GB of memory beside the file, "
        f"and {max(available, 0) / 1e9:.1f} GB are left; measure it on a machine with more"
    )


def _bits_per_byte(said: Sequence[torch.Tensor], prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> float:
    """Bits that the conversations cost, turns and roles included, for each byte of their text in UTF-8."""
    nats, size = 0.0, 0
    for ids, at in zip(prompts.sequences, said, strict=True):
        nats += torch.nn.functional.cross_entropy(at[:-1].float(), torch.tensor(ids[1:]), reduction="sum").item()
        size += len(tokenizer.decode(ids[1:]).encode())
    return nats / math.log(2) / size


def _refusals(answers: Sequence[list[int]], tokenizer: "PreTrainedTokenizerBase") -> int:
    return sum(is_refusal(text) for text in tokenizer.batch_decode(list(answers), skip_special_tokens=True))


def _tokenized_otherwise(other: Computation, prompts: Prompts, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The number of conversations of which llama.cpp's own tokenizer makes other tokens."""
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in prompts.messages]
    pairs = zip(texts, prompts.sequences, strict=True)
    return sum(other.tokenize(text)[: len(ids)] != ids for text, ids in pairs)


def _answer(request_file: str) -> None:
    request: Request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    files = {weights: Path(file) for weights, file in request["files"].items()}
    prices = measure(Path(request["folder"]), files, request["conversations"])
    print(json.dumps([asdict(price) for price in prices]))


if __name__ == "__main__":
    as_process(lambda: _answer(sys.argv[1]))
