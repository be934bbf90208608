"""What the server tells of its models' cards, and which of their sections are about limits."""

import asyncio
import json
import os

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from hfchat.serving.engines.engine import EngineInfo
from hfchat.serving.openai.card import add_cards, limits_in
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.versions.models import ServedModels

CARD = """\
# A limited edition

What it is.

## How to use it

```
## Limits of a program are none of the model's
```

## Intended use

Tests.

### By whom

Nobody.

## Training data

Secret.

## Bias, Risks, and Limitations

Many.

# Another part
"""


def test_limits_are_the_sections_that_say_so_with_all_below_them():
    assert limits_in(CARD) == (
        "## Intended use\n\nTests.\n\n### By whom\n\nNobody.\n\n## Bias, Risks, and Limitations\n\nMany."
    )
    assert limits_in("# Limits\n\nA title is no section.") == ""


@pytest.fixture
def card_of(scripted, tmp_path):
    """The response for a model's card; with `content` as the README.md of its folder."""

    def get(content=None, source=None, name="tiny"):
        (tmp_path / "config.json").write_text("{}")
        if content is not None:
            (tmp_path / "README.md").write_bytes(content)
        app = FastAPI()
        app.add_exception_handler(ApiError, lambda request, error: error.response())
        add_cards(app, ServedModels.of("org/tiny", scripted()), {"org/tiny": source or str(tmp_path)})
        return TestClient(app).get(f"/v1/models/{name}/card")

    return get


def test_a_card_without_its_metadata_and_comments(card_of):
    content = b"---\nlicense: [unclosed\n---\n\n# Tiny\n<!-- fill in\nlater -->\n## Limits\n\nMany."
    response = card_of(content, name="org/tiny")
    assert response.json() == {
        "id": "org/tiny",
        "object": "model.card",
        "text": "# Tiny\n\n## Limits\n\nMany.",
        "limits": "## Limits\n\nMany.",
    }
    assert card_of(content, name="org%2Ftiny").json() == response.json()


def test_a_model_without_a_card(card_of):
    nothing = {"id": "org/tiny", "object": "model.card", "text": None, "limits": None}
    assert card_of(name="org/tiny").json() == nothing
    assert card_of(b"---\nlicense: mit\n---\n", name="org/tiny").json() == nothing
    # a model of the Hub that is not here, one that no folder has, and what is no name of either
    for source in ("nobody/has-this", "./no-such-folder", "a:b c"):
        assert card_of(source=source, name="org/tiny").json() == nothing


def test_bytes_that_are_no_text_are_shown_as_such(card_of):
    assert card_of(b"# T\xff", name="org/tiny").json()["text"] == "# T\ufffd"


@pytest.mark.parametrize("target", ["elsewhere/README.md", "elsewhere/keys.json", "/proc/self/environ", "/dev/zero"])
def test_a_card_that_is_a_link_to_elsewhere_is_not_read(card_of, tmp_path, target):
    """As `git clone` leaves it: it would show any file of the server."""
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    for name in ("README.md", "keys.json"):
        (tmp_path.parent / "elsewhere" / name).write_text("secret")
    (tmp_path / "README.md").symlink_to(target if target.startswith("/") else f"../{target}")
    assert card_of(name="org/tiny").json()["text"] is None


def test_a_card_that_is_no_file_is_not_read(card_of, tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert card_of(name="org/tiny").json()["text"] is None


def test_a_folder_may_be_a_link(card_of, tmp_path):
    """As `current` of a registry is."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "config.json").touch()
    (tmp_path / "v1" / "README.md").write_text("# One")
    (tmp_path / "current").symlink_to("v1")
    assert card_of(source=str(tmp_path / "current"), name="org/tiny").json()["text"] == "# One"


def test_the_hubs_own_links_are_followed(card_of, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "45").write_text("# Cached")
    (snapshot / "README.md").symlink_to("../../blobs/45")
    assert card_of(source=str(snapshot), name="org/tiny").json()["text"] == "# Cached"


@pytest.mark.parametrize(
    ("card", "text"),
    [
        ("a<!-- b -->c<!---->d", "acd"),
        ("a<!-->b-->c", "ac"),
        ("a<!-- b", "a<!-- b"),
        ("a-->b<!--c-->", "a-->b"),
        ("\ufeff---\r\na: b\r\n---\r\n# T", "# T"),
        ("\n\n---\na: b\n--- \n# T", "# T"),
        ("---\n# T", "---\n# T"),
        ("# T\n---\na\n---", "# T\n---\na\n---"),
    ],
)
def test_header_and_comments(card_of, card, text):
    assert card_of(card.encode(), name="org/tiny").json()["text"] == text


@pytest.mark.parametrize(
    "part", ["<!--", "<!-- -->", "---\n", "---\n\n", "\n", "# ", "#", "```\n", "limit", "<", "-", "\r"]
)
def test_a_card_takes_no_longer_than_it_is_long(card_of, part):
    """By the expression that looked for comments, this one of `<!--` would take minutes."""
    assert card_of(part.encode() * (256 * 1024 // len(part)), name="org/tiny").status_code == 200


def test_an_unknown_model(card_of):
    response = card_of(name="another")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_card_says_what_the_weights_of_a_file_cost(scripted, tmp_path):
    difference = {
        "mean_kl_nats": 0.0123, "max_kl_nats": 0.5, "top_token_agreement": 0.9, "identical_answers": 0.25,
        "first_difference": None, "max_gap_nats": 0.1,
    }  # fmt: skip
    price = {
        "weights": "q4_k_m", "bytes": 10**8, "evaluated_bytes": 3 * 10**8, "computed_in": "float32",
        "conversations": 8, "tokens": 480, "conversations_sha256": "0", "difference": difference,
        "bits_per_byte_before": 1.1, "bits_per_byte": 1.2, "requests": 40, "refusals_before": 6, "refusals": 4,
        "tokenized_otherwise": 0,
    }  # fmt: skip
    (tmp_path / "certificate.json").write_text(json.dumps({"price": price}))
    engine = scripted()
    engine.info = EngineInfo("llamacpp", "q4_k_m", tmp_path / "model.gguf")
    models = ServedModels.of("org/tiny", engine)
    asyncio.run(models.start())
    app = FastAPI()
    add_cards(app, models, {})
    card = TestClient(app).get("/v1/models/org/tiny/card").json()
    assert card["limits"].startswith("## Limits of the weights\n\nThe weights are a GGUF file in `q4_k_m` (100 MB; ")
    assert "0.012 nats from the evaluated ones on average" in card["limits"]
    assert "4 are refused, before 6" in card["text"]
