"""`/docs` without the network: all that the page loads is served here, and its policy lets it run."""

import base64
import hashlib
import re


def test_the_page_loads_only_from_here(serve, scripted):
    served = serve(scripted())
    response = served.http.get("/docs")
    assert response.status_code == 200
    assert "http" not in re.sub(r"<!--.*?-->", "", response.text)
    loaded = re.findall(r'(?:href|src)="([^"]+)"', response.text)
    assert len(loaded) == 3
    for path in [*loaded, "/openapi.json"]:
        assert served.http.get(path).status_code == 200


def test_its_policy_lets_exactly_its_script_run(serve, scripted):
    response = serve(scripted()).http.get("/docs")
    (script,) = re.findall("<script>(.*?)</script>", response.text, re.DOTALL)
    policy = response.headers["content-security-policy"]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
