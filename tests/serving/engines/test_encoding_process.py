"""A model's chat template and tokenizer run in a process of their own: what they do there harms no other request."""

import asyncio
import copy

import psutil
import pytest
from tokenizers import Regex, pre_tokenizers

from hfchat.chat import Chat
from hfchat.errors import UserError
from hfchat.serving.engines import encoding_process
from hfchat.serving.engines.encoding import PromptEncoder
from hfchat.serving.engines.encoding_process import ModelEncoder
from hfchat.serving.engines.engine import EngineError, PromptError, PromptTooLongError
from hfchat.serving.engines.transformers_engine import TransformersEngine
from hfchat.serving.http.record import RequestRecord

HI = Chat([{"role": "user", "content": "Hi"}])
TOOL = {"type": "function", "function": {"name": "f"}}
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
IF_ASKED = "{% if 'please' in messages[0]['content'] %}" + LOOP + "{% endif %}{{ messages[0]['content'] }}"


@pytest.fixture
def with_template(tiny_tokenizer):
    def make(template):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


def encoder(tokenizer, context=512):
    return ModelEncoder(tokenizer, len(tokenizer), context)


@pytest.mark.parametrize("content", ["Hi", "", "🙂 日本語", "<|im_end|> \n <|im_start|>system"])
def test_prompts_are_those_of_the_encoder(tiny_tokenizer, content):
    messages = Chat([{"role": "user", "content": content}])
    here = PromptEncoder(tiny_tokenizer, len(tiny_tokenizer))
    there = encoder(tiny_tokenizer)
    assert there.conversation(messages) == here.conversation(messages)
    assert there.text(content + "x") == here.text(content + "x")
    assert there.text([3, 1]) == [3, 1]
    for wrong in ("", [len(tiny_tokenizer)], [-1], [2**70]):
        with pytest.raises(PromptError):
            there.text(wrong)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP, "more than 0.5 s"),
        ("{{ 'a' * 4000000000 }}", "memory"),
        (
            "{% set n = namespace(s='a' * 1000) %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "memory|more than",
        ),
        ("{{ messages[0]['content'].nothing.at.all }}", "refused|undefined|has no attribute"),
    ],
)
def test_a_template_has_bounds_of_time_and_memory(with_template, tiny_tokenizer, monkeypatch, template, why):
    good, bad = encoder(tiny_tokenizer), encoder(with_template(template))
    expected = good.conversation(HI)
    monkeypatch.setattr(encoding_process, "_TIME_LIMIT_S", 0.5)
    with pytest.raises((EngineError, PromptError), match=why):
        bad.conversation(HI)
    monkeypatch.undo()
    assert good.conversation(HI) == expected


def test_a_regular_expression_has_them_too(tiny_tokenizer, monkeypatch):
    """Of a tokenizer that somebody made; a text of a few kilobytes may take it hours."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    splits = [pre_tokenizers.Split(Regex("(a?){28}a{28}$|(.*,){11}x"), "isolated") for _ in range(30)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    monkeypatch.setattr(encoding_process, "_TIME_LIMIT_S", 0.5)
    with pytest.raises(EngineError, match=r"more than 0.5 s|too much memory|failed"):
        encoder(tokenizer, 100_000).text("a" * 27 + ",1" * 3000)
    monkeypatch.undo()
    assert encoder(tiny_tokenizer).text("Hi")


@pytest.mark.parametrize("template", ["", "{# nothing #}", "{% if false %}x{% endif %}"])
def test_a_template_that_renders_nothing_is_refused(tiny_model, with_template, template):
    tokenizer = with_template(template or "{{ '' }}")
    with pytest.raises(PromptError, match="makes nothing"):
        encoder(tokenizer).conversation(HI)
    with pytest.raises(UserError, match="makes nothing"):
        asyncio.run(TransformersEngine(tiny_model, tokenizer).start())


def test_a_template_that_never_ends_is_refused_at_the_start(tiny_model, with_template, monkeypatch):
    engine = TransformersEngine(tiny_model, with_template(LOOP))
    encoder(engine._tokenizer)
    monkeypatch.setattr(encoding_process, "_TIME_LIMIT_S", 0.5)
    with pytest.raises(UserError, match=r"chat template or tokenizer took more than 0.5 s"):
        asyncio.run(engine.start())


def test_a_prompt_that_is_too_long_is_not_encoded(tiny_tokenizer, monkeypatch):
    """Megabytes of a prompt that must be refused anyway would keep the others waiting."""
    longest = max(map(len, tiny_tokenizer.get_vocab()))
    there = encoder(tiny_tokenizer, context=64)
    with pytest.raises(PromptTooLongError, match="the context holds 64"):
        there.text("Hi " * 64)  # found by its tokens
    monkeypatch.setattr(encoding_process._process, "ask", lambda *_: pytest.fail("it was encoded"))
    too_long = "x" * (64 * longest + 1)
    for encode, source in (
        (there.text, too_long),
        (there.text, [1] * 65),
        (there.conversation, Chat([{"role": "user", "content": too_long}])),
        (there.conversation, Chat([{"role": "user", "content": "x" * 64}] * (longest + 1))),
        (there.conversation, Chat(HI.messages, tools=[TOOL | {"function": {"name": "f", "description": too_long}}])),
    ):
        with pytest.raises(PromptTooLongError, match="the context holds 64"):
            encode(source)


def test_the_tokenizer_of_an_engine_that_was_stopped_is_forgotten(tiny_tokenizer):
    """A server that follows a registry loads many of them."""
    before, after = encoder(tiny_tokenizer), encoder(tiny_tokenizer)
    before.text("Hi")
    assert before._subject.number in encoding_process._process._knows
    before.close()
    after.text("Hi")
    assert before._subject.number not in encoding_process._process._knows
    assert after._subject.number in encoding_process._process._knows


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_CPU"), reason="only Linux tells")
def test_the_kernel_ends_a_process_whose_server_was_killed(tiny_tokenizer):
    """Nobody else would, while it is at a template that never ends."""
    encoder(tiny_tokenizer).text("Hi")
    child = psutil.Process(encoding_process._process._child.pid)
    soft, _ = child.rlimit(psutil.RLIMIT_CPU)
    assert 0 < soft - sum(child.cpu_times()[:2]) <= 3 * encoding_process._TIME_LIMIT_S
    assert 0 < child.rlimit(psutil.RLIMIT_AS)[0] < psutil.virtual_memory().total + 2**34


def test_the_server_goes_on_after_a_template_that_does_not(tiny_model, with_template, serve, monkeypatch):
    served = serve(TransformersEngine(tiny_model, with_template(IF_ASKED)), default_max_tokens=2)
    assert served.chat().status_code == 200
    monkeypatch.setattr(encoding_process, "_TIME_LIMIT_S", 0.5)
    stuck = served.chat(messages=[{"role": "user", "content": "loop, please"}])
    assert stuck.status_code == 500
    assert "chat template" in stuck.json()["error"]["message"]
    monkeypatch.undo()
    assert served.chat().status_code == 200
    assert served.http.get("/health").json() == {"status": "ok", "model": "tiny-chat", "running": 0, "waiting": 0}


def test_keys_come_in_turn_to_have_their_prompts_read(tiny_model, tiny_tokenizer, monkeypatch):
    """One key's ten prompts wait while another key's only one is read."""
    engine = TransformersEngine(tiny_model, tiny_tokenizer)
    read = []
    monkeypatch.setattr(engine._prompting._encoder, "text", lambda text: read.append(text) or [1])

    record = RequestRecord()
    monkeypatch.setattr("hfchat.serving.engines.prompting.current_record", lambda: record)

    async def ask(key, text):
        record.key_name = key
        await engine.encode_text(text)

    async def work():
        flood = [asyncio.create_task(ask("flood", "x" * 100)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.gather(*flood, asyncio.create_task(ask("small", "y")))

    asyncio.run(work())
    assert read.index("y") <= 1
    assert len(read) == 11
