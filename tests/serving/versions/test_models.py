"""Several models behind one server, and a server that answers while they load."""

import socket
import threading

import pytest

from hfchat.errors import UserError
from hfchat.serving.http.app import create_app
from hfchat.serving.server import Server
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions.models import ServedModels, Version


def test_each_name_has_its_engine(serve, scripted):
    models = ServedModels(["base", "mine"], lambda: {name: Version(scripted([name])) for name in ("base", "mine")})
    served = serve(models)
    listed = served.http.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in listed] == [("base", None), ("mine", "base")]
    for name in ("base", "mine"):
        answer = served.chat(model=name).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, name)
        assert served.complete(model=name).json()["choices"][0]["text"] == name
        assert served.http.get(f"/v1/models/{name}").json()["id"] == name
    unknown = served.chat(model="theirs")
    assert unknown.status_code == 404
    assert "'base', 'mine'" in unknown.json()["error"]["message"]


def test_one_model_that_is_down_is_not_ready_and_leaves_the_others(serve, scripted):
    down = scripted()
    served = serve(ServedModels(["base", "mine"], lambda: {"base": Version(scripted()), "mine": Version(down)}))
    assert served.http.get("/ready").status_code == 200
    down.error = "out of memory"
    assert served.http.get("/ready").status_code == 503
    assert served.chat(model="mine").status_code == 503
    assert served.chat(model="base").status_code == 200


def test_while_it_loads_the_server_lives_and_says_so(serve, scripted, eventually):
    go_on = threading.Event()

    def load():
        go_on.wait(10)
        return {"tiny-chat": Version(scripted())}

    served = serve(ServedModels(["tiny-chat"], load), loaded=False)
    assert served.http.get("/health").status_code == 200
    assert served.http.get("/").status_code == 200
    assert served.http.get("/v1/models").json()["data"][0]["id"] == "tiny-chat"
    for response in (served.chat(), served.complete(), served.http.get("/ready")):
        assert response.status_code == 503
        assert "loading" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) > 0
    assert served.chat(model="another").status_code == 404
    go_on.set()
    eventually(lambda: served.http.get("/ready").status_code == 200)
    assert served.chat().status_code == 200


def test_a_server_that_still_loads_ends_without_waiting_for_it(scripted):
    go_on, settings = threading.Event(), ServerSettings(model="tiny", port=9)
    models = ServedModels(["tiny"], lambda: go_on.wait(60) and {"tiny": Version(scripted())})
    server = Server(create_app(settings, models), models, settings, announce=lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        server.should_exit = True
        thread.join(20)
    ended = not thread.is_alive()
    go_on.set()
    assert ended


def test_a_model_that_cannot_be_loaded_ends_the_server(scripted):
    def load():
        raise UserError("the weights are broken")

    models, settings = ServedModels(["tiny"], load), ServerSettings(model="tiny", port=9)
    announced = threading.Event()
    with pytest.raises(UserError, match="the weights are broken"):
        Server(create_app(settings, models), models, settings, announce=announced.set).run()
    assert not announced.is_set()
