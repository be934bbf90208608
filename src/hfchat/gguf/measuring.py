"""Holds a GGUF file against the model that it was made of: `python -m hfchat.gguf.measuring REQUEST`.

transformers computes what the model says, in float32 where there is room for it, and llama.cpp what the file says, so
that what its kernels round is in the price too.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from hfchat.behaviour import (
    MAX_NEW_TOKENS,
    Behaviour,
    Prompts,
    compare,
    context_length,
    logits,
)
from hfchat.errors import UserError
from hfchat.generation import answering, generate_answers
from hfchat.gguf.computation import Computation
from hfchat.gguf.price import Price
from hfchat.gguf.process import as_process
from hfchat.models import load_model, load_tokenizer
from hfchat.processes import available_bytes
from hfchat.safety.refusals import is_refusal, requests_to_refuse
from hfchat.token_ids import Messages, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REFUSAL_TOKENS = 20  # of an answer, in which a refusal shows
_ROOM = 1.2  # times the weights: what computing needs beside them


def measure(folder: Path, file: Path, weights: str, conversations: Sequence[Messages]) -> Price:
    """What the weights of a file cost.

    Args:
        folder: The model.
        file: The GGUF file.
        weights: The type of its weights.
        conversations: Held-out ones.

    Raises:
        UserError: If there is no memory for both, or if the file is of another model.
    """
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), dtype=_dtype_that_fits(folder, file)).eval()
    prompts = Prompts.render(conversations, tokenizer, context_length(model))
    requests = [
        encode_conversation(tokenizer, [{"role": "user", "content": request}], add_generation_prompt=True)
        for request in requests_to_refuse()
    ]
    requests = [ids for ids in requests if len(ids) + _REFUSAL_TOKENS <= context_length(model)]
    other = Computation(file)
    rows = len(model.get_output_embeddings().weight)
    if other.vocabulary_size != rows:
        raise UserError(
            f"{file}: has {other.vocabulary_size} tokens, and {folder} {rows}, so it is of another model; delete it "
            "and convert the model again"
        )

    with tqdm(desc=f"Price of {weights}", total=6, unit="step") as bar:
        end = tokenizer.eos_token_id
        with answering(model, tokenizer, MAX_NEW_TOKENS, [end]):
            said = Behaviour(logits(model, prompts), generate_answers(model, prompts.prompts))
        bar.update(2)
        with answering(model, tokenizer, _REFUSAL_TOKENS, [end]):
            answers = generate_answers(model, requests) if requests else []
        bar.update()
        says = Behaviour(
            [other.logits(ids) for ids in prompts.sequences], other.answers(prompts.prompts, MAX_NEW_TOKENS, end)
        )
        bar.update(2)
        others = other.answers(requests, _REFUSAL_TOKENS, end) if requests else []
        difference = compare(said, says, prompts, model, tokenizer)
        bar.update()
    return Price(
        weights=weights,
        bytes=file.stat().st_size,
        evaluated_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        computed_in=str(model.dtype).removeprefix("torch."),
        conversations=len(prompts.messages),
        tokens=sum(map(len, prompts.sequences)),
        conversations_sha256=prompts.sha256(),
        difference=difference,
        bits_per_byte_before=_bits_per_byte(said.logits, prompts, tokenizer),
        bits_per_byte=_bits_per_byte(says.logits, prompts, tokenizer),
        requests=len(requests),
        refusals_before=_refusals(answers, tokenizer),
        refusals=_refusals(others, tokenizer),
        tokenized_otherwise=_tokenized_otherwise(other, prompts, tokenizer),
    )


def _dtype_that_fits(folder: Path, file: Path) -> torch.dtype | str:
    """Float32 if there is room for it beside the file, else the stored type."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    available = available_bytes() - file.stat().st_size
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


if __name__ == "__main__":

    def _answer() -> None:
        request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        conversations = request.pop("conversations")
        price = measure(Path(request["folder"]), Path(request["file"]), request["weights"], conversations)
        print(json.dumps(asdict(price)))

    as_process(_answer)
