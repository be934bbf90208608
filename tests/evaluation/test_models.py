import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.suite import open_model
from tests.servers.chat_api import chat_api, error

QUESTION = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def tiny(chat_model):
    return LocalModel("tiny", str(chat_model), batch_size=4, dtype="float32")


def test_a_stop_ends_an_answer_and_is_no_part_of_it(tiny):
    (whole,) = tiny.answer(["The recipe"], 8)
    assert len(whole.text) > 4
    stop = whole.text[2:4]
    (cut,) = tiny.answer(["The recipe"], 8, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.ended


def test_an_answer_that_is_cut_has_not_ended(tiny, monkeypatch):
    ids = tiny.tokenizer("of files").input_ids
    monkeypatch.setattr(
        "hfchat.evaluation.local_model.generate_answers", lambda *_: [ids, [*ids, tiny.tokenizer.eos_token_id]]
    )
    cut, ended = tiny.answer([QUESTION, QUESTION], 8)
    assert (cut.text, cut.tokens, cut.ended) == ("of files", len(ids), False)
    assert (ended.text, ended.tokens, ended.ended) == ("of files", len(ids) + 1, True)


def test_losses_are_those_of_the_model_whatever_else_is_in_the_batch(tiny):
    prompts, targets = [QUESTION, "The recipe reads", ""], ["Because.", " files", "A tokenizer turns the text"]
    together = tiny.losses(prompts, targets)
    for prompt, target, loss in zip(prompts, targets, together, strict=True):
        (alone,) = tiny.losses([prompt], [target])
        assert (loss.nats, loss.tokens) == (pytest.approx(alone.nats, rel=1e-5), alone.tokens)
    text = tiny.tokenizer(targets[2], add_special_tokens=False).input_ids
    ids = torch.tensor([[tiny.tokenizer.bos_token_id, *text]])
    reference = tiny.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert together[2].nats == pytest.approx(reference, rel=1e-5)


def test_an_adapter_answers_as_on_its_base(chat_model, tokenizer, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(chat_model)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = open_model("adapter", str(tmp_path / "adapter"), 2, "float32")
    assert model.describe().kind == "adapter"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = adapted.eval()(ids).logits
        torch.testing.assert_close(model.model(ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(LocalModel("b", str(chat_model), 2, "float32").model(ids).logits, expected)
    assert model.check(QUESTION, [], 4, "row 1") > 4
    with pytest.raises(UserError, match=r"row 1: .* reads 128"):
        model.check(QUESTION, [], 1000, "row 1")


def test_freeing_lets_go_of_the_weights(tiny):
    assert tiny.parameters is None
    _ = tiny.model
    assert tiny.parameters > 0
    tiny.free()
    assert tiny.parameters is None


def test_a_model_without_a_chat_template_continues_texts_only(chat_model, tmp_path):
    shutil.copytree(chat_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    base = LocalModel("base", str(tmp_path / "base"), 2, "float32")
    assert base.check("The recipe", [], 4, "row 1") > 4
    assert base.describe().chat_template is None
    with pytest.raises(UserError, match="has no chat template"):
        base.check(QUESTION, [], 4, "row 1")


def test_a_server_is_told_by_its_url():
    model = open_model("gpt", "http://127.0.0.1:9/v1#some-model", 2, "float32")
    assert isinstance(model, RemoteModel)
    assert model.describe().sha256 == "remote:http://127.0.0.1:9/v1#some-model"
    with pytest.raises(UserError, match=r"row 1: a text to continue, but .* takes only messages"):
        model.check("A text", [], 4, "row 1")
    with pytest.raises(UserError, match="gives no likelihoods"):
        model.losses([QUESTION], ["Because."])


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: cannot be asked for its models") as error:
        open_model("gpt", "http://127.0.0.1:9/v1", 2, "float32")
    assert "\n" not in str(error.value)


def test_a_server_answers_in_the_order_of_the_prompts(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def echo(request):
        return f"You said {request['messages'][-1]['content']}"

    with chat_api(echo) as server:
        model = open_model("gpt", server.url, 4, "float32")
        prompts = [[{"role": "user", "content": f"number {i}"}] for i in range(9)]
        answers = model.answer(prompts, 4, stop=["\n"])
    assert [answer.text for answer in answers] == [f"You said number {i}" for i in range(9)]
    assert {(answer.tokens, answer.ended) for answer in answers} == {(4, True)}
    assert {request["temperature"] for request in server.requests} == {0}
    assert server.requests[0]["stop"] == ["\n"]
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_an_answer_that_a_server_cuts_has_not_ended():
    with chat_api(lambda _: "one two three") as server:
        (answer,) = open_model("gpt", f"{server.url}#scripted", 1, "float32").answer([QUESTION], 2)
    assert (answer.text, answer.tokens, answer.ended) == ("one two", 2, False)


def test_a_server_that_is_busy_is_asked_again():
    states = iter([error(429, "busy", retry_after="0"), error(503, "not yet", retry_after="0"), "now"])
    with chat_api(lambda _: next(states)) as server:
        (answer,) = open_model("gpt", f"{server.url}#scripted", 1, "float32").answer([QUESTION], 8)
    assert answer.text == "now"


@pytest.mark.parametrize(
    ("name", "models", "message"),
    [
        ("", ("a", "b"), "has 2 models; name one: http://.*#a"),
        ("#c", ("a",), "c does not answer: .*The model `c` does not exist"),
    ],
)
def test_what_a_server_refuses_is_one_line(name, models, message):
    with chat_api(lambda _: "x", models) as server, pytest.raises(UserError, match=message) as caught:
        open_model("gpt", f"{server.url}{name}", 1, "float32").answer([QUESTION], 8)
    assert "\n" not in str(caught.value)
