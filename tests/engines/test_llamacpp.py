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
from hfchat.token_ids import special_tokens
from tests.servers.speaker import LEARNED, needs_llamacpp

pytestmark = needs_llamacpp
GRAMMAR = (
    '%llguidance {}\nstart: %json {"type": "object", "properties": {"word": {"enum": ["東京", "b"]}, "ok": {"type": '
    '"boolean"}}, "required": ["word", "ok"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": '
    "false}}"
)
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
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    engine = LlamaCpp(speaker_gguf, slots=2, context=256, special_tokens=special_tokens(tokenizer))
    with ChildServer(engine.program) as server:
        model = AutoModelForCausalLM.from_pretrained(speaker, dtype=torch.float32)
        yield Real(model, tokenizer, engine, server)


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


def test_biases_and_the_form_of_the_answer_are_sent(real):
    request = real.request("Hi", logit_bias={7: -1.5, 8: 2}, grammar=GRAMMAR, kept=frozenset({3, 1}))
    plain, body = real.engine.body(real.request("Hi")), real.engine.body(request)
    special = [real.tokenizer.decode([1]), real.tokenizer.decode([3])]
    ends = ",".join(map(str, sorted(request.ends)))
    bound = GRAMMAR.replace("start: ", f"start: bound_answer (<[{ends}]>)?\nbound_answer: ")
    assert body == plain | {"logit_bias": [[7, -1.5], [8, 2]], "grammar": bound, "preserved_tokens": special}


def test_an_answer_may_end_with_any_end_where_its_grammar_would_go_on(real):
    """llama.cpp's llguidance knows only one of them."""
    grammar = '%llguidance {}\nstart: "a" ("b"){0,30}'
    for end in (1, 3):
        request = real.request("Hi", grammar=grammar, logit_bias={end: 100.0})
        text, _, finish_reason = real.say(replace(request, ends=frozenset({end})))
        assert (text, finish_reason) == ("a", "stop")


@pytest.mark.parametrize(
    "draw", [{}, *({"temperature": 3.0, "seed": seed, "top_p": 0.9, "repetition_penalty": 1.3} for seed in range(4))]
)
def test_an_answer_has_the_form_that_it_must_have_and_then_ends(real, draw):
    """However unlikely that is: this model would say something that it has learned by heart."""
    text, tokens, reason = real.say(real.request("Greet", 100, grammar=GRAMMAR, **draw))
    assert reason == "stop"
    answer = json.loads(text)
    assert answer.keys() == {"word", "ok"}
    assert (answer["word"] in ("東京", "b"), type(answer["ok"])) == (True, bool)
    # Where its tokens are told, they are those of the text, and the end.
    chunks = real.chunks(real.request("Greet", 100, grammar=GRAMMAR, **draw))
    told = [chunk for chunk in chunks if chunk.ids is not None]
    assert all(real.tokenizer.decode(chunk.ids, skip_special_tokens=True) == chunk.text for chunk in told)
    assert all(len(chunk.ids) == chunk.tokens for chunk in told)
    assert real.say(real.request("Greet", tokens - 2, grammar=GRAMMAR, **draw))[2] == "length"


def test_a_bias_makes_a_token_certain_or_impossible(real):
    first, other = real.generate("Swear")[0], real.tokenizer.encode("e", add_special_tokens=False)[0]
    for draw in ({}, {"temperature": 2.0, "seed": 3}):
        liked = real.request("Swear", 3, logit_bias={other: 100.0}, **draw)
        assert real.say(liked)[0] == "eee"
        disliked = real.request("Swear", 1, logit_bias={first: -100.0}, **draw)
        assert real.say(disliked)[0] != real.tokenizer.decode([first])
        # What the grammar refuses, no bias brings back.
        assert json.loads(real.say(replace(liked, max_tokens=100, grammar=GRAMMAR))[0])["word"]


def test_the_text_of_a_special_token_is_kept_if_that_is_asked_for(real):
    special, other = 1, 3
    grammar = f'%llguidance {{}}\nstart: "a" <[{special}]> "b" <[{other}]> "c"'
    request = real.request("Greet", 10, grammar=grammar)
    assert real.say(request) == ("abc", 6, "stop")
    kept = real.tokenizer.decode([special])
    assert real.say(replace(request, kept=frozenset({special})))[0] == f"a{kept}bc"


def test_a_prompt_and_its_answer_fill_the_context(real):
    ids = (real.ids("Greet") * 50)[:200]
    request = TokenRequest(ids, 56, temperature=50.0, seed=1)  # so that hardly a token is like another, or an end
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
