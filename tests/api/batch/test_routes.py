"""/v1/files and /v1/batches: the openai package unchanged, keys apart, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import jsonschema
import openai
import pytest
import requests

ENDPOINTS = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 4, "n": 2, "temperature": 1}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 4}),
    ("/v1/embeddings", {"input": ["Once", "upon"], "encoding_format": "base64"}),
    ("/v1/score", {"text_1": "Once", "text_2": ["upon", "a time"]}),
    ("/v1/rerank", {"query": "Once", "documents": ["upon", "a time"]}),
)
WINDOW: Any = "24h"


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def make_lines(url: str, bodies: Sequence[Any]) -> bytes:
    lines = [
        {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(client: openai.OpenAI, data: bytes) -> str:
    return client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch").id


def begin(client: openai.OpenAI, url: Any, bodies: Sequence[Any], **others: Any) -> str:
    name = upload(client, make_lines(url, bodies))
    made = client.batches.create(
        input_file_id=name, endpoint=url, completion_window=WINDOW, **others
    )
    return made.id


def wait(client: openai.OpenAI, batch_id: str) -> Any:
    """The test's time limit is the bound."""
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch


def read(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


@pytest.mark.parametrize(("url", "body"), ENDPOINTS)
def test_an_answer_is_that_of_the_route(
    client: openai.OpenAI, demo: Any, url: str, body: dict[str, Any]
) -> None:
    body = body | ({"seed": 5} if url in ("/v1/chat/completions", "/v1/completions") else {})
    made = begin(client, url, [body, {"model": "other", **body}], metadata={"for": "a test"})
    batch = wait(client, made)
    assert (batch.status, batch.metadata, batch.endpoint) == ("completed", {"for": "a test"}, url)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.expires_at - batch.created_at == 24 * 3600
    (line,) = read(client, batch.output_file_id)
    assert (line["custom_id"], line["error"]) == ("c0", None)
    assert line["response"]["status_code"] == 200
    (wrong,) = read(client, batch.error_file_id)
    assert wrong["response"]["status_code"] == 404
    direct = requests.post(demo.url + url, json=body, timeout=60).json()

    def told(answer: Any) -> Any:
        """Without what differs from request to request."""
        if isinstance(answer, list):
            return [told(one) for one in answer]
        if not isinstance(answer, dict):
            return answer
        per_request = ("id", "created", "created_at", "completed_at", "seed", "store", "usage")
        return {name: told(one) for name, one in answer.items() if name not in per_request}

    found = line["response"]["body"]
    if url == "/v1/responses":  # without a seed of its own
        assert found["object"] == "response" and found["store"] is False
        return
    assert told(found) == told(direct)


def test_a_batch_reads_as_its_schema_says(client: openai.OpenAI, demo: Any) -> None:
    name = begin(client, "/v1/completions", [{"prompt": "a", "max_tokens": 1}])
    batch = wait(client, name)
    document = requests.get(f"{demo.url}/openapi.json", timeout=60).json()
    for method, path, filled in (
        ("get", "/v1/files", "/v1/files"),
        ("get", "/v1/files/{file_id}", f"/v1/files/{batch.output_file_id}"),
        ("get", "/v1/batches", "/v1/batches"),
        ("get", "/v1/batches/{batch_id}", f"/v1/batches/{name}"),
        ("delete", "/v1/files/{file_id}", f"/v1/files/{batch.output_file_id}"),
    ):
        answer = requests.request(method, demo.url + filled, timeout=60)
        assert answer.status_code == 200
        told = document["paths"][path][method]["responses"]["200"]
        schema = told["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    form = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    assert list(form) == ["multipart/form-data"]


def test_files_are_listed_shown_and_forgotten(client: openai.OpenAI) -> None:
    names = [upload(client, b"%d\n" % number) for number in range(5)]
    mine = [file.id for file in client.files.list(order="desc", limit=2) if file.id in names]
    assert mine == names[::-1]  # page by page
    assert [file.id for file in client.files.list(order="asc", after=names[1]).data][:3] == names[
        2:
    ]
    inputs, outputs = (
        {file.id for file in client.files.list(purpose=kind)} for kind in ("batch", "batch_output")
    )
    assert set(names) <= inputs and not set(names) & outputs
    shown = client.files.retrieve(names[0])
    assert (shown.bytes, shown.filename, shown.purpose) == (2, "in.jsonl", "batch")
    assert client.files.content(names[3]).read() == b"3\n"
    for name in names:
        assert client.files.delete(name).deleted
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(name)


def test_batches_are_listed_page_by_page(client: openai.OpenAI) -> None:
    names = [begin(client, "/v1/completions", [{"prompt": "a", "max_tokens": 1}]) for _ in range(3)]
    found = [batch.id for batch in client.batches.list(limit=1)]
    assert found[:3] == names[::-1]
    assert len(set(found)) == len(found)
    page = client.batches.list(limit=2, after=names[2])
    assert [batch.id for batch in page.data] == [names[1], names[0]]
    for name in names:
        wait(client, name)


def test_cancelling_frees_the_engine(client: openai.OpenAI, demo: Any) -> None:
    body = {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
    name = begin(client, "/v1/completions", [body] * 40)
    file = client.batches.retrieve(name).input_file_id
    while not demo.num_unfinished():
        pass
    with pytest.raises(openai.ConflictError, match="cancel that first"):
        client.files.delete(file)
    assert client.batches.cancel(name).status in ("cancelling", "cancelled")
    batch = wait(client, name)
    assert (batch.status, batch.request_counts.total) == ("cancelled", 40)
    demo.wait_until_empty()
    assert demo.num_used_blocks() == 0
    with pytest.raises(openai.ConflictError, match="has not ended"):
        client.batches.cancel(name)
    assert client.files.delete(file).deleted


def test_wrong_lines_are_told_by_their_numbers(client: openai.OpenAI) -> None:
    data = make_lines("/v1/completions", [{"prompt": "a"}]) + b"\n{\n"
    made = client.batches.create(
        input_file_id=upload(client, data), endpoint="/v1/completions", completion_window=WINDOW
    )
    batch = wait(client, made.id)
    assert batch.status == "failed" and batch.output_file_id is None
    assert [(one.line, one.code) for one in batch.errors.data] == [(3, "invalid_json_line")]


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"endpoint": "/v1/messages"}, 400, "endpoint", "one of /v1/chat/completions"),
        ({"completion_window": "soon"}, 400, "completion_window", "like 24h"),
        ({"completion_window": "0h"}, 400, "completion_window", "from 1m to 30d"),
        ({"completion_window": "31d"}, 400, "completion_window", "from 1m to 30d"),
        ({"input_file_id": "file-x"}, 404, "input_file_id", "no such file"),
        ({"input_file_id": "../lock"}, 404, "input_file_id", "no such file"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata", "at most 16"),
        ({"metadata": {"a": "b" * 513}}, 400, "metadata", "512"),
        ({"metadata": {"a": 5}}, 400, "metadata", "5"),
        ({"output_expires_after": {"seconds": 5}}, 400, "output_expires_after", "not supported"),
        ({"nothing": 5}, 400, "nothing", "known"),
        ({"endpoint": None}, 400, "endpoint", "null"),
    ],
)
def test_what_no_batch_can_be_is_refused(
    client: openai.OpenAI, demo: Any, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    good = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": "file-x"}
    answer = requests.post(f"{demo.url}/v1/batches", json=good | fields, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


def test_an_output_is_no_input(client: openai.OpenAI, demo: Any) -> None:
    batch = wait(client, begin(client, "/v1/completions", [{"prompt": "a", "max_tokens": 1}]))
    with pytest.raises(openai.BadRequestError, match="purpose batch_output"):
        client.batches.create(
            input_file_id=batch.output_file_id,
            endpoint="/v1/completions",
            completion_window="24h",
        )


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("files?limit=0", "1 to 10000"),
        ("files?limit=10001", "1 to 10000"),
        ("files?limit=x", "an integer"),
        ("files?order=up", "desc, asc"),
        ("files?purpose=assistants", "batch or batch_output"),
        ("files?after=file-x", "none of this id"),
        ("batches?limit=101", "1 to 100"),
        ("batches?after=batch_x", "none of this id"),
    ],
)
def test_pages_that_are_not_there(demo: Any, query: str, words: str) -> None:
    answer = requests.get(f"{demo.url}/v1/{query}", timeout=60)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


FORMS: list[tuple[Any, Any, int, str]] = [
    ({"purpose": (None, "batch")}, None, 400, "file is missing"),
    ({"file": ("a", b"x")}, None, 400, "purpose is missing"),
    ({"file": ("a", b"x"), "purpose": (None, "assistants")}, None, 400, "only batch"),
    ({"file": ("a", b"x"), "purpose": (None, "b" * 2000)}, None, 400, "1024 bytes"),
    ({"file": ("a", b"x"), "model": (None, "m")}, None, 400, "file and purpose"),
    ([("file", ("a", b"x")), ("file", ("b", b"y"))], None, 400, "each once"),
    (None, "application/json", 415, "multipart/form-data"),
    (None, "multipart/form-data", 400, "cannot be read"),
    (None, "multipart/form-data; boundary=b", 400, "cannot be read"),
]


@pytest.mark.parametrize(("form", "kind", "status", "words"), FORMS)
def test_forms_that_are_no_file(demo: Any, form: Any, kind: Any, status: int, words: str) -> None:
    before = set(requests.get(f"{demo.url}/v1/files", timeout=60).text)
    raw = {} if form else {"data": b"{}", "headers": {"Content-Type": kind}}
    answer = requests.post(f"{demo.url}/v1/files", files=form, timeout=60, **raw)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert set(requests.get(f"{demo.url}/v1/files", timeout=60).text) == before


FILE = b'Content-Disposition: form-data; name="file"\r\n'
CHARSET = b'Content-Disposition: form-data; name="_charset_"\r\n'
PARTS = {
    "control character": b'Content-Disposition: form-data; name="a\x1eb"\r\n\r\nx\r\n',
    "no header": b"nothing\r\n\r\nx\r\n",
    "many headers": b"".join(b"a%d: b\r\n" % i for i in range(200)) + b"\r\nx\r\n",
    "long header": b"a: %s\r\n\r\nx\r\n" % (b"x" * 10_000),
    "end in a header": b"Content-Dis",
    "end in the file": FILE + b"\r\nx",
    "form in a form": FILE + b"Content-Type: multipart/mixed\r\n\r\nx\r\n",
    "long charset": CHARSET + b"\r\n%s\r\n" % (b"x" * 40),
    "unreadable charset": CHARSET + b"\r\n\xff\xfe\r\n",
}


@pytest.mark.parametrize("boundary", ["b", "b" * 60])
@pytest.mark.parametrize("part", PARTS)
def test_forms_that_are_none(demo: Any, part: str, boundary: str) -> None:
    """A body that is no form is the client's fault, however it is wrong."""
    edge = f"--{boundary}".encode()
    body = edge + b"\r\n" + PARTS[part] + edge + b"--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert "The form cannot be read: " in refused(demo, body, kind)


@pytest.mark.parametrize(
    "damage", [b"junk", gzip.compress(b"x", mtime=0)[:-8] + b"junkjunk"], ids=["all", "checksum"]
)
def test_what_cannot_be_unpacked_is_no_form(demo: Any, damage: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    assert "The form cannot be read: " in refused(demo, damage, kind)


def refused(demo: Any, body: bytes, headers: dict[str, str]) -> str:
    answer = requests.post(f"{demo.url}/v1/files", data=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


async def send(fake: Any, data: bytes, key: str = "", filename: str = "a.jsonl") -> Any:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", io.BytesIO(data), filename=filename)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with fake.session.post(f"{fake.url}/v1/files", data=form, headers=headers) as response:
        return response.status, await response.json()


async def test_files_have_a_limit_of_their_own(serve_fake: Any) -> None:
    from quire.api.limits import Limits

    limits = Limits(max_body_bytes=1024, max_file_bytes=2**20, file_store_bytes=2**21)
    fake = await serve_fake(limits=limits)
    data = b"x" * 2**20
    status, kept = await send(fake, data, filename="../../etc/passwd")
    assert (status, kept["bytes"]) == (200, 2**20) and kept["filename"].endswith("passwd")
    async with fake.session.get(f"{fake.url}/v1/files/{kept['id']}/content") as response:
        assert await response.read() == data
    status, told = await send(fake, data + b"x")
    assert status == 413 and "at most 1048576 bytes" in told["error"]["message"]
    assert (await send(fake, data))[0] == 200
    status, told = await send(fake, b"x")
    assert (status, told["error"]["code"]) == (413, "file_store_full")


async def test_another_key_sees_nothing(serve_fake: Any) -> None:
    fake = await serve_fake(api_keys=["one", "two"])
    _, kept = await send(fake, make_lines("/v1/completions", [{"prompt": [1]}]), "one")
    wish = {
        "endpoint": "/v1/completions",
        "completion_window": "1h",
        "input_file_id": kept["id"],
    }

    async def ask(key: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{fake.url}/v1/{path}"
        async with fake.session.request(method, url, headers=headers, json=body) as response:
            return response.status, await response.read()

    assert (await ask("two", "POST", "batches", wish))[0] == 404
    status, made = await ask("one", "POST", "batches", wish)
    batch = json.loads(made)
    assert status == 200
    for method, path in (
        ("GET", f"files/{kept['id']}"),
        ("GET", f"files/{kept['id']}/content"),
        ("DELETE", f"files/{kept['id']}"),
        ("GET", f"batches/{batch['id']}"),
        ("POST", f"batches/{batch['id']}/cancel"),
    ):
        assert (await ask("two", method, path))[0] == 404, path
        assert (await ask("", method, path))[0] == 401, path
    for place in ("files", "batches"):
        assert json.loads((await ask("two", "GET", place))[1])["data"] == []
        assert len(json.loads((await ask("one", "GET", place))[1])["data"]) >= 1
