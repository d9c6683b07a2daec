"""The API describes itself: every route is there, and nothing that it allows breaks the server."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quire.api.auth import OPEN_PATHS
from quire.api.openapi import PLACE, Documents, make_document
from quire.api.route import EVENTS, Route
from quire.api.routes.health import health
from quire.api.routes.table import ROUTES

MAX_TOKENS = 4
CONVERSATION: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
SCORED = {"text_1": "a", "text_2": ["b"]}
RANKED = {"query": "a", "documents": ["b", {"text": "c"}]}
ASKED: Any = {"input": "a", "max_output_tokens": 2}


def test_every_route_is_described() -> None:
    document = make_document(ROUTES, asks_key=True)
    found = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert found == {(one.method, one.path.replace(":.+", "")) for one in ROUTES}
    names = [
        one["operationId"] for methods in document["paths"].values() for one in methods.values()
    ]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in OPEN_PATHS)
    assert "security" not in json.dumps(make_document(ROUTES, asks_key=False)["paths"])


def test_references_have_targets() -> None:
    document = make_document(ROUTES, asks_key=True)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_what_a_route_answers_fits_its_schema(live: Any, route: Route) -> None:
    """Responses are those of a real engine; bodies are the smallest that are right."""
    if route.path in ("/sleep", "/reset_prefix_cache"):
        pytest.skip("not while other tests use the engine")
    if route.tag == "batches":
        pytest.skip("batch/test_routes.py has files")
    if route.path.endswith("/classify"):
        pytest.skip("this model does not classify")
    if route.media == EVENTS:
        pytest.skip("it has no end; test_live.py looks at its events")
    few = {"num_predict": 2}
    bodies: dict[str, Any] = {
        "/v1/completions": {"prompt": "a", "max_tokens": 2, "logprobs": 1, "echo": True},
        "/v1/chat/completions": {
            **CONVERSATION,
            "max_tokens": 2,
            "logprobs": True,
            "timeline": True,
        },
        "/v1/responses": ASKED,
        "/v1/messages": {**CONVERSATION, "max_tokens": 2},
        "/v1/messages/count_tokens": CONVERSATION,
        "/api/generate": {"model": "tiny", "prompt": "a", "stream": False, "options": few},
        "/api/chat": {
            "model": "tiny",
            "messages": [{"role": "user", "content": "a"}],
            "stream": False,
            "logprobs": True,
            "options": few,
        },
        "/api/show": {"model": "tiny"},
        "/v1/embeddings": {"input": ["a", "b"]},
        "/pooling": {"input": "a", "encoding_format": "base64"},
        **dict.fromkeys(("/v1/score", "/score"), SCORED),
        **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), RANKED),
        "/api/embed": {"model": "tiny", "input": "a"},
        "/api/embeddings": {"model": "tiny", "prompt": "a"},
        "/tokenize": {"prompt": "a", "return_token_strs": True},
        "/detokenize": {"tokens": [1, 2]},
    }
    url = live.url + route.path.replace("{model:.+}", "tiny")
    if "{response_id}" in url:
        # Only those in the background can be cancelled.
        asked = ASKED | {"background": route.path.endswith("/cancel")}
        kept = requests.post(f"{live.url}/v1/responses", json=asked, timeout=60).json()
        url = url.replace("{response_id}", kept["id"])
    body = bodies.get(route.path)
    assert (body is None) == (route.body is None)
    answer = requests.request(route.method, url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].partition(";")[0] == route.media
    if route.response is None:
        return
    document = requests.get(f"{live.url}/openapi.json", timeout=60).json()
    responses = document["paths"][route.path.replace(":.+", "")][route.method.lower()]["responses"]
    schema = responses["200"]["content"][route.media]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    for place, kind in (
        ("v1", "ErrorBody"),
        ("v1/messages", "MessagesError"),
        ("api", "PlainError"),
    ):
        missing = requests.request(route.method, f"{live.url}/{place}/nothing", timeout=60).json()
        error = {"$ref": f"#/components/schemas/{kind}", "components": document["components"]}
        jsonschema.validate(missing, error)
    if route.body is not None:
        wrong = requests.request(route.method, url, json={"model": "other"}, timeout=60)
        told = responses[str(wrong.status_code)]["content"]["application/json"]["schema"]
        jsonschema.validate(wrong.json(), {**told, "components": document["components"]})


class Scripts(HTMLParser):
    """What a browser takes for scripts, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.fetched: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if tag != "a":  # a link fetches nothing until somebody follows it
            self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_the_page_holds_the_document_and_fetches_nothing(live: Any) -> None:
    answer = requests.get(f"{live.url}/docs", timeout=60)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    parser = Scripts()
    parser.feed(answer.text)
    assert parser.fetched == []
    (script,) = parser.scripts
    assert PLACE not in script
    held = json.JSONDecoder().raw_decode(script[script.index("{") :])[0]
    assert held == requests.get(f"{live.url}/openapi.json", timeout=60).json()


def test_no_text_of_a_route_ends_the_script() -> None:
    mean = Route(method="GET", path="/x", handler=health, summary="</script><b>")
    parser = Scripts()
    parser.feed(Documents([mean], asks_key=False).page.decode())
    (script,) = parser.scripts
    held = json.JSONDecoder().raw_decode(script[script.index("{") :])[0]
    assert held["paths"]["/x"]["get"]["summary"] == mean.summary


def bounded(body: Any) -> Any:
    """Ask the model that is here for few tokens, so that examples take no time."""
    name = "max_output_tokens" if isinstance(body, dict) and "input" in body else "max_tokens"
    few = {name: MAX_TOKENS, "model": None}
    return {**body, **few} if isinstance(body, dict) else body


def bounded_for_ollama(body: Any) -> Any:
    """As bounded, in Ollama's words."""
    if not isinstance(body, dict):
        return body
    options = body.get("options") or {}
    if isinstance(options, dict):
        options = {**options, "num_predict": MAX_TOKENS}
    return {**body, "model": "demo", "options": options}


LEFT_OUT = ("/sleep", "/wake_up", "/debug/live")


@pytest.fixture(scope="module")
def operations(demo: Any) -> dict[tuple[str, str], Any]:
    """What schemathesis reads in the document of a server with the bundled model."""
    document = requests.get(f"{demo.url}/openapi.json", timeout=60).json()
    schema = schemathesis.openapi.from_dict(document)
    results: list[Any] = list(schema.get_all_operations())
    found = [result.ok() for result in results]
    assert len(found) == len(ROUTES)
    return {(one.method.upper(), one.path): one for one in found}


@pytest.mark.parametrize(
    "route",
    [one for one in ROUTES if one.path not in LEFT_OUT],
    ids=lambda route: f"{route.method} {route.path}",
)
@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_nothing_that_the_document_allows_is_a_5xx(
    demo: Any, operations: dict[tuple[str, str], Any], route: Route, data: Any
) -> None:
    operation = operations[route.method, route.path.replace(":.+", "")]
    case = data.draw(operation.as_strategy(), label="case")
    if case.path.endswith(("/completions", "/responses", "/messages")):
        case.body = bounded(case.body)
    if case.path in ("/api/chat", "/api/generate"):
        case.body = bounded_for_ollama(case.body)
    response = case.call(base_url=demo.url, timeout=60)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        (name,) = response.headers["x-request-id"]
        told = response.json()
        if not case.path.startswith("/api/"):  # Ollama's errors are nothing but a text
            assert told["error"].get("request_id", told.get("request_id")) == name
