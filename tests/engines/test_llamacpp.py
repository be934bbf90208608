"""The real server of llama.cpp over a tiny model, held against transformers' `generate`."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfchat.engines.child import ChildServer
from hfchat.engines.dialect import EngineFailureError, TokenRequest
from hfchat.engines.llamacpp import LlamaCpp
from hfchat.errors import UserError
from tests.servers.speaker import LEARNED, needs_llamacpp

pytestmark = needs_llamacpp
QUESTIONS = [*LEARNED, "What is a tokenizer?", "Zażółć 😀", "Greet me, and then count the files"]


@dataclass
class Real:
    """The model as transformers has it, and as llama.cpp serves it."""

    model: object
    tokenizer: object
    engine: LlamaCpp
    server: ChildServer

    def ids(self, question):
        messages = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def request(self, question, max_tokens=20, **more):
        return TokenRequest(self.ids(question), max_tokens, frozenset({self.tokenizer.eos_token_id}), **more)

    def generate(self, question, max_tokens=20, **more):
        """The greedy answer of transformers in tokens."""
        ids = torch.tensor([self.ids(question)])
        answer = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, **more
        )
        return answer[0, ids.shape[1] :].tolist()

    def post(self, body, key=None):
        headers = {"Authorization": f"Bearer {key or self.server.key}", "Content-Type": "application/json"}
        url = self.server.url + self.engine.path
        return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30)

    def chunks(self, request):
        reader, chunks = self.engine.reader(request), []
        with self.post(self.engine.body(request)) as response:
            for line in response:
                if line.startswith(b"data: ") and (chunk := reader.read(line.removeprefix(b"data: "))):
                    chunks.append(chunk)
                    if chunk.finish_reason:
                        return chunks
        raise AssertionError("the answer has no end")

    def say(self, request):
        """The answer, how many tokens it has, and why it ends."""
        chunks = self.chunks(request)
        return "".join(chunk.text for chunk in chunks), sum(chunk.tokens for chunk in chunks), chunks[-1].finish_reason


@pytest.fixture(scope="module")
def real(speaker, speaker_gguf):
    engine = LlamaCpp(speaker_gguf, slots=2, context=256)
    with ChildServer(engine.program) as server:
        model = AutoModelForCausalLM.from_pretrained(speaker, dtype=torch.float32)
        yield Real(model, AutoTokenizer.from_pretrained(speaker), engine, server)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_generate(real, question, penalty):
    expected = real.generate(question, repetition_penalty=penalty)
    text, tokens, reason = real.say(real.request(question, repetition_penalty=penalty))
    ended = expected[-1] == real.tokenizer.eos_token_id
    decoded = real.tokenizer.decode(expected[:-1] if ended else expected)
    # What is not a whole character at the end is not sent.
    assert text.rstrip("\ufffd") == decoded.rstrip("\ufffd")
    assert (tokens, reason) == (len(expected), "stop" if ended else "length")


@pytest.mark.parametrize(("question", "answer"), LEARNED.items())
def test_a_chunk_is_whole_characters(real, question, answer):
    chunks = real.chunks(real.request(question, 60))
    assert "".join(chunk.text for chunk in chunks) == answer
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert len(chunks) > 5
    assert chunks[-1].finish_reason == "stop"


def test_an_end_that_the_file_does_not_name_is_one(real):
    second = real.generate("Swear")[2]
    request = replace(real.request("Swear"), ends=frozenset({second}))
    text, tokens, reason = real.say(request)
    assert (tokens, reason) == (3, "stop")
    assert text == real.tokenizer.decode(real.generate("Swear")[:2])


def test_seeds_are_repeatable_whatever_their_size(real):
    draw = partial(real.request, "What is a tokenizer?", temperature=3.0)
    for seed in (7, -7, 2**63 - 1):
        assert real.say(draw(seed=seed)) == real.say(draw(seed=seed))
    assert len({real.say(draw(seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_what_narrows_the_draw_to_one_token_is_greedy(real, narrow):
    greedy = real.say(real.request("What is a tokenizer?"))
    narrow = {"temperature": 3.0, "seed": 3} | narrow
    assert real.say(real.request("What is a tokenizer?", **narrow)) == greedy


def test_all_that_is_asked_for_is_sent(real):
    request = real.request("Hi", temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, seed=2**32)
    body = real.engine.body(request)
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.2, "repeat_last_n": 256}
    assert body == body | asked | {"prompt": real.ids("Hi"), "n_predict": 20, "seed": 1}
    assert "seed" not in real.engine.body(replace(request, seed=None))


def test_a_prompt_and_its_answer_fill_the_context(real):
    ids = (real.ids("Greet") * 50)[:200]
    request = TokenRequest(ids, 56, repetition_penalty=1.3)
    assert real.say(request)[1:] == (56, "length")


def test_nobody_is_answered_without_the_key(real):
    with pytest.raises(urllib.error.HTTPError) as refused:
        real.post(real.engine.body(real.request("Hi")), key="wrong")
    assert refused.value.code == 401
    refused.value.close()


@pytest.mark.parametrize("event", [b"{", b"[]", b"{}", b'{"tokens_predicted": 1}', b"null", b'{"error": 1}'])
def test_an_event_that_is_not_one_is_an_error(event):
    reader = LlamaCpp(Path("m.gguf"), 1, 256).reader(TokenRequest([1], 1))
    with pytest.raises(EngineFailureError, match="not a part of an answer"):
        reader.read(event)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"GGUF" + bytes(100)], ids=["empty", "rubbish", "header"])
def test_a_file_that_is_not_valid_is_one_line(tmp_path, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    server = ChildServer(LlamaCpp(file, 1, 256).program)
    with pytest.raises(UserError, match=r"^llama\.cpp ended with status 1: .*") as refused, server:
        pass
    assert "\n" not in str(refused.value)
    assert "does not say why" not in str(refused.value)
