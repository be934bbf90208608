"""No quantization without its price: a GGUF file against the model that was evaluated, on held-out conversations.

The price is the mean KL divergence of the next-token distributions in nats, what it does to bits per byte and greedy
answers, and how many requests that ought to be refused are refused before and after. It is in `certificate.json`
beside the file. A file whose price is beyond the limit of its type gets no certificate.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from hfchat.behaviour import MAX_NEW_TOKENS, Difference, Prompts, default_conversations
from hfchat.certificates import Certificate
from hfchat.errors import UserError
from hfchat.gguf.conversion import cached_gguf
from hfchat.gguf.process import work_in_process
from hfchat.gguf.weight_types import weight_type
from hfchat.lineage import CERTIFICATE
from hfchat.storage import write_whole
from hfchat.token_ids import Messages

PRICE = "price.json"  # beside a file of the cache: what was measured, whatever the limit


@dataclass(frozen=True)
class Price:
    """What the weights of a GGUF file cost, as llama.cpp computes with them.

    Attributes:
        weights: The type of the file's weights.
        bytes: Size of the file.
        evaluated_bytes: Size of the weights that were evaluated.
        computed_in: In what transformers computed the evaluated weights: `float32`, or without room their own.
        conversations: Number of the held-out conversations.
        tokens: Number of their tokens, at each of which the distributions are compared.
        conversations_sha256: Digest of the conversations.
        difference: How far what the file says is from what the model says.
        bits_per_byte_before: What the conversations cost with the evaluated weights.
        bits_per_byte: The same with those of the file.
        requests: Number of requests that ought to be refused.
        refusals_before: Those that were, with the evaluated weights.
        refusals: The same with those of the file.
        tokenized_otherwise: Number of conversations of which llama.cpp's own tokenizer makes other tokens than the
            model's does. `hfchat serve` gives it token ids; other servers do not.
    """

    weights: str
    bytes: int
    evaluated_bytes: int
    computed_in: str
    conversations: int
    tokens: int
    conversations_sha256: str
    difference: Difference
    bits_per_byte_before: float
    bits_per_byte: float
    requests: int
    refusals_before: int
    refusals: int
    tokenized_otherwise: int

    def text(self) -> str:
        """A few sentences in Markdown, for cards and the terminal."""
        difference = self.difference
        return (
            f"The weights are a GGUF file in `{self.weights}` ({self.bytes / 1e6:.0f} MB; those that were evaluated "
            f"have {self.evaluated_bytes / 1e6:.0f} MB). On {self.conversations} held-out conversations "
            f"({self.tokens} tokens), the next-token distributions are {difference.mean_kl_nats:.2g} nats from the "
            f"evaluated ones on average (KL divergence; {difference.max_kl_nats:.2g} at most), the likeliest token is "
            f"the same at {difference.top_token_agreement:.1%}, and {difference.identical_answers:.0%} of the greedy "
            f"answers are identical. Bits per byte: {self.bits_per_byte:.3f}, before {self.bits_per_byte_before:.3f}. "
            f"Of {self.requests} requests that ought to be refused, {self.refusals} are refused, before "
            f"{self.refusals_before}."
        )


class Request(TypedDict):
    """What `hfchat.gguf.measuring` is asked: see `measure_prices`."""

    folder: str
    files: dict[str, str]
    conversations: list[Messages]


@dataclass
class PricedCertificate(Certificate):
    """The certificate of a GGUF file, with its price.

    Attributes:
        price: What was measured.
    """

    price: Price | None = None

    def record(self) -> dict[str, object]:
        record = super().record()
        if self.price is not None:
            record["price"] = asdict(self.price)
            record["prompts"] = {
                "conversations": self.price.conversations,
                "tokens": self.price.tokens,
                "max_new_tokens": MAX_NEW_TOKENS,
                "sha256": self.price.conversations_sha256,
            }
        return record


def priced_gguf(folder: Path, weights: str, *, max_drift: float | None = None) -> tuple[Path, Price]:
    """The GGUF file of a model from the cache, and its price, which is measured once.

    Args:
        folder: A model with its tokenizer.
        weights: A name of `hfchat.gguf.weight_types.WEIGHT_TYPES`.
        max_drift: The limit of the mean KL divergence in nats per token; by default that of the type.

    Raises:
        UserError: As `hfchat.gguf.conversion.cached_gguf`; if the price is beyond the limit, or cannot be measured.
    """
    file = cached_gguf(folder, weights)
    with FileLock(file.parent.with_name(f".{file.parent.name}.lock")):  # others wait for what one measures
        price = read_price(file.with_name(PRICE))
        if price is None:
            price = measure_prices(folder, {weights: file}, default_conversations())[weights]
            write_whole(file.with_name(PRICE), json.dumps(asdict(price), indent=2) + "\n")
        is_certified = file.with_name(CERTIFICATE).is_file()
        if not is_certified or price.difference.mean_kl_nats > _limit(weights, max_drift):
            certificate_of(file, price, max_drift).issue()
    return file, price


def measure_prices(folder: Path, files: Mapping[str, Path], conversations: Sequence[Messages]) -> dict[str, Price]:
    """Hold GGUF files against the model that they were made of, in a process of its own.

    Args:
        folder: The model.
        files: By the types of their weights.
        conversations: Held-out ones, of which the first eight are taken, and 128 tokens of each.

    Returns:
        What each costs, by its type.

    Raises:
        UserError: If a price cannot be measured: a file is of another model, or there is no memory for both.
    """
    print(f"measuring what {' and '.join(files)} cost, against {folder}", file=sys.stderr)
    request: Request = {
        "folder": str(folder),
        "files": {weights: str(file) for weights, file in files.items()},
        "conversations": [list(messages) for messages in conversations],
    }
    with tempfile.TemporaryDirectory(prefix="hfchat-price-") as scratch:
        request_file = Path(scratch, "request.json")
        request_file.write_text(json.dumps(request), encoding="utf-8")
        *_, answer = work_in_process("hfchat.gguf.measuring", str(request_file)).splitlines()
    return {price.weights: price for price in TypeAdapter(list[Price]).validate_json(answer)}


def certificate_of(file: Path, price: Price, max_drift: float | None = None) -> PricedCertificate:
    """The certificate of a file with that price: a check for each figure, of which the mean KL divergence may fail.

    Args:
        file: In a folder of its own.
        price: What its weights cost.
        max_drift: The limit in nats per token; by default that of the type.

    Returns:
        The certificate; `issue` writes it beside the file, or refuses the file.
    """
    certificate = PricedCertificate(file.parent, Prompts([], [], []), price=price)
    difference, limit = price.difference, _limit(price.weights, max_drift)
    certificate.differences["gguf"] = difference
    advice = (
        "take a type with more bits, or allow it with --max-drift; if the type has 16 bits or more, llama.cpp "
        "computes this model wrongly: take another engine, and report it"
    )
    certificate.check(
        "gguf: logits", difference.mean_kl_nats <= limit, f"{difference.mean_kl_nats:.2g} nats (KL)", limit, advice
    )
    for name, found in (
        ("gguf: largest KL", f"{difference.max_kl_nats:.2g} nats"),
        ("gguf: likeliest token", f"{difference.top_token_agreement:.1%} the same"),
        ("gguf: answers", f"{difference.identical_answers:.0%} identical"),
        ("gguf: bits per byte", f"{price.bits_per_byte:.4f}, before {price.bits_per_byte_before:.4f}"),
        ("gguf: refusals", f"{price.refusals} of {price.requests}, before {price.refusals_before}"),
        ("gguf: token ids", f"{price.tokenized_otherwise} of {price.conversations} conversations become others"),
        ("gguf: size", f"{price.bytes / 1e6:.0f} MB, before {price.evaluated_bytes / 1e6:.0f} MB"),
    ):
        certificate.check(name, True, found, "reported", advice)
    return certificate


def read_price(file: Path) -> Price | None:
    """The price in a `price.json` or a `certificate.json`; None if there is no such file, or no price in it.

    Raises:
        UserError: If the file is not valid.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content = content.get("price") if file.name == CERTIFICATE else content
        return TypeAdapter(Price).validate_python(content) if content is not None else None
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, ValidationError) as error:
        raise UserError(f"{file}: is not a valid price of a GGUF file; delete it, and it is measured again") from error


def _limit(weights: str, max_drift: float | None) -> float:
    return weight_type(weights).max_drift if max_drift is None else max_drift
