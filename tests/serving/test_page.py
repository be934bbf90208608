"""The chat page: what it may load, and that it is served with the headers that hold it to that."""

import re
from importlib.resources import files

import pytest

PAGE = files("hfchat") / "serving" / "page"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}


@pytest.mark.parametrize("name", SOURCES)
def test_no_file_names_another_server(name):
    text = SOURCES[name].replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:/|//[\w-]+\.\w|@import|url\(", text)


def test_nothing_is_stored_in_the_browser():
    scripts = "".join(text for name, text in SOURCES.items() if name.endswith(".js"))
    assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie|\bcaches\b", scripts)


def test_browsers_do_not_look_up_the_names_in_links():
    """They do so before anybody follows one. A headless one never does, so only the text can be looked at."""
    assert '<meta http-equiv="x-dns-prefetch-control" content="off">' in SOURCES["index.html"]


def test_text_of_a_model_never_becomes_markup():
    scripts = "".join(text for name, text in SOURCES.items() if name.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", scripts)
    # the policy forbids inline code and styles, so the page must not count on them
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", SOURCES["index.html"])


def test_everything_is_served_under_a_strict_policy(serve, scripted):
    served = serve(scripted())
    index = served.http.get("/")
    assert index.headers["content-type"].startswith("text/html")
    assert index.headers["content-security-policy"].startswith("default-src 'self';")
    paths = set(re.findall(r'(?:src|href)="(/[^"]+)"', index.text))
    imported = {name for text in SOURCES.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert imported | {"chat.js"} == {name for name in SOURCES if name.endswith(".js")}
    paths |= {f"/page/{name}" for name in imported}
    for path in paths:
        response = served.http.get(path)
        assert response.status_code == 200, path
        assert response.headers["x-content-type-options"] == "nosniff"
    assert served.http.get("/page/../app.py").status_code == 404
    assert served.http.get("/page/%2e%2e/app.py").status_code == 404


def test_it_says_what_it_is(serve, scripted):
    text = serve(scripted()).http.get("/").text
    for words in ("This is an AI", "can be wrong", "What is hfchat?", 'aria-live="polite"', '<label for="input"'):
        assert words in text
