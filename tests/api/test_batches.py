"""Files and batches by OpenAI's client: every line answered once, whatever happens between."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from quire import AsyncEngine
from quire.api.batch.journal import Journal
from quire.api.batch.lines import scan
from quire.api.batch.schema import Answer, LineResponse
from quire.api.limits import Limits
from quire.api.server import Server, ServerOptions, bind

COMPLETIONS: Any = "/v1/completions"
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def make_line(index: int, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    body = body or {"prompt": f"the cat {index}", "max_tokens": 4, "seed": index}
    return {"custom_id": f"line-{index}", "method": "POST", "url": url, "body": body}


def write(lines: list[Any]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def upload(client: openai.OpenAI, data: bytes) -> str:
    return client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch").id


def begin(client: openai.OpenAI, data: bytes, endpoint: Any = COMPLETIONS) -> Any:
    file_id = upload(client, data)
    return client.batches.create(
        input_file_id=file_id, endpoint=endpoint, completion_window="24h", metadata={"of": "me"}
    )


def num_answered(client: openai.OpenAI, batch: Any) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def until_ended(client: openai.OpenAI, batch: Any) -> Any:
    """The test's time limit is the bound."""
    while batch.status not in ENDED:
        batch = client.batches.retrieve(batch.id)
    return batch


def answers(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_lines_are_answered_as_their_routes_answer(client: openai.OpenAI, live: Any) -> None:
    lines = [make_line(index) for index in range(40)]
    lines[7]["body"]["temperature"] = -1
    batch = until_ended(client, begin(client, write(lines)))
    assert batch.status == "completed" and batch.metadata == {"of": "me"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 39, 1)
    good = answers(client, batch.output_file_id)
    assert [one["custom_id"] for one in good] == [f"line-{i}" for i in range(40) if i != 7]
    for one in good[::13]:
        index = int(one["custom_id"].removeprefix("line-"))
        asked = requests.post(live.url + COMPLETIONS, json=lines[index]["body"], timeout=60).json()
        assert one["response"]["status_code"] == 200
        assert one["response"]["body"]["choices"] == asked["choices"]
    (bad,) = answers(client, batch.error_file_id)
    assert bad["custom_id"] == "line-7" and bad["response"]["status_code"] == 400
    assert "temperature" in bad["response"]["body"]["error"]["message"]
    assert live.num_used_blocks() == 0


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}),
        ("/v1/responses", {"input": "the cat", "max_output_tokens": 3}),
        (EMBEDDINGS, {"input": ["the cat", "sat"]}),
    ],
)
def test_other_endpoints_are_asked_too(
    client: openai.OpenAI, url: str, body: dict[str, Any]
) -> None:
    batch = until_ended(client, begin(client, write([make_line(0, url, **body)]), url))
    (one,) = answers(client, batch.output_file_id)
    assert one["response"]["status_code"] == 200 and one["response"]["body"]["model"] == "tiny"


def test_wrong_lines_are_told_by_their_numbers(client: openai.OpenAI) -> None:
    lines = [make_line(0), make_line(0), {"custom_id": "x"}, make_line(3, CHAT)]
    batch = until_ended(client, begin(client, write(lines) + b"{not json\n"))
    assert batch.status == "failed" and batch.output_file_id is None
    assert [(one.line, one.code) for one in batch.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "missing_field"),
        (4, "invalid_url"),
        (5, "invalid_json_line"),
    ]
    empty = until_ended(client, begin(client, b"\n\n"))
    assert empty.errors.data[0].code == "empty_file"


def test_a_batch_that_is_cancelled_keeps_what_was_answered(
    client: openai.OpenAI, live: Any
) -> None:
    lines = [
        make_line(index, prompt="the cat", max_tokens=100, ignore_eos=True) for index in range(400)
    ]
    batch = begin(client, write(lines))
    while not num_answered(client, batch):
        pass
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    ended = until_ended(client, client.batches.retrieve(batch.id))
    assert ended.status == "cancelled" and ended.request_counts.completed < 400
    told = answers(client, ended.output_file_id)
    assert len(told) == ended.request_counts.completed
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    live.wait_until_empty()
    assert live.num_used_blocks() == 0


def test_somebody_who_waits_comes_before_a_batch(client: openai.OpenAI, live: Any) -> None:
    lines = [
        make_line(index, prompt="the cat", max_tokens=100, ignore_eos=True) for index in range(300)
    ]
    batch = begin(client, write(lines))
    while not num_answered(client, batch):
        pass
    client.completions.create(model="tiny", prompt="now", max_tokens=2)
    assert client.batches.retrieve(batch.id).status == "in_progress"
    client.batches.cancel(batch.id)
    until_ended(client, client.batches.retrieve(batch.id))


def test_files_are_listed_paged_and_forgotten(client: openai.OpenAI) -> None:
    before = {one.id for one in client.files.list()}
    names = [upload(client, write([make_line(index)])) for index in range(5)]
    listed = [one.id for one in client.files.list(limit=2, order="asc") if one.id not in before]
    assert listed == names
    shown = client.files.retrieve(names[0])
    assert (shown.filename, shown.purpose) == ("in.jsonl", "batch")
    assert client.files.content(names[0]).read() == write([make_line(0)])
    for name in names:
        assert client.files.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(names[0])
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id=names[0], endpoint=COMPLETIONS, completion_window="24h")
    latest = client.batches.list(limit=2)
    assert len(latest.data) == 2 and latest.has_more


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"endpoint": "/v1/audio"}, "endpoint is"),
        ({"completion_window": "soon"}, "it must be like 24h"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"input_file_id": "../../etc/passwd"}, "there is no such file"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    client: openai.OpenAI, body: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {
        "input_file_id": upload(client, write([make_line(0)])),
        "endpoint": COMPLETIONS,
        "completion_window": "24h",
    }
    with pytest.raises(openai.APIStatusError, match=message):
        client.batches.create(**(fields | body))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"purpose": (None, "fine-tune"), "file": ("a", b"x")}, "purpose is"),
        ({"purpose": (None, "batch")}, "file is missing"),
        ({"file": ("a", b"x")}, "purpose is missing"),
        ({"purpose": (None, "batch"), "other": ("a", b"x")}, "it must have file and purpose"),
    ],
)
def test_forms_that_are_wrong_are_refused(live: Any, fields: Any, message: str) -> None:
    answer = requests.post(f"{live.url}/v1/files", files=fields, timeout=60)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


async def start(model_folder: Path, folder: Path, **options: Any) -> tuple[AsyncEngine, Server]:
    engine = AsyncEngine(
        model=str(model_folder),
        load_format="dummy",
        backend="reference",
        served_model_name="tiny",
        num_kv_blocks=64,
        max_num_seqs=4,
        num_threads=1,
    )
    server = Server(engine, ServerOptions(port=0, files_dir=str(folder), **options))
    await engine.start()
    await server.start(bind("127.0.0.1", 0))
    return engine, server


async def stop(engine: AsyncEngine, server: Server) -> None:
    await server.close_archive()
    await engine.stop()
    await server.stop()


async def test_a_server_that_comes_back_goes_on_behind_what_was_answered(
    model_folder: Path, tmp_path: Path
) -> None:
    lines = [
        make_line(index, prompt=f"cat {index}", max_tokens=60, ignore_eos=True)
        for index in range(60)
    ]
    engine, server = await start(model_folder, tmp_path / "files")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        file = await client.files.create(file=("in", write(lines)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"
        )
        while not (await client.batches.retrieve(batch.id)).request_counts.completed:  # type: ignore[union-attr]  # always there
            pass
    await stop(engine, server)
    (journal,) = (tmp_path / "files/batches").glob("*.jsonl")
    kept = journal.read_bytes()
    num_kept = kept.count(b"\n")
    assert 0 < num_kept < 60
    # As after a kill: a line that was not written whole.
    journal.write_bytes(kept + b'{"id":"batch_req_torn","custom_id":"line-59","resp')
    engine, server = await start(model_folder, tmp_path / "files")
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        while (ended := await client.batches.retrieve(batch.id)).status not in ENDED:
            pass
        assert ended.status == "completed" and ended.output_file_id is not None
        text = (await client.files.content(ended.output_file_id)).text
    await stop(engine, server)
    told = [json.loads(line) for line in text.splitlines()]
    assert [one["custom_id"] for one in told] == [f"line-{index}" for index in range(60)]
    ids = {json.loads(line)["id"] for line in kept.splitlines()}
    assert ids <= {one["id"] for one in told}, "what was answered is not asked again"


async def test_files_are_their_keys_own(model_folder: Path, tmp_path: Path) -> None:
    engine, server = await start(model_folder, tmp_path / "files", api_keys=("a", "b"))
    mine, other = (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        for key in ("a", "b")
    )
    async with mine, other:
        file = await mine.files.create(file=("in", write([make_line(0)])), purpose="batch")
        batch = await mine.batches.create(
            input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"
        )
        for asked in (
            other.files.retrieve(file.id),
            other.files.content(file.id),
            other.files.delete(file.id),
            other.batches.retrieve(batch.id),
            other.batches.cancel(batch.id),
            other.batches.create(
                input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await asked
        assert (await other.files.list()).data == [] and (await other.batches.list()).data == []
    await stop(engine, server)


def test_run_batch_answers_a_file_and_goes_on(model_folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [make_line(index) for index in range(12)]
    lines[3] = make_line(3, EMBEDDINGS, input="the cat")
    source.write_bytes(write(lines))
    command = [
        *(sys.executable, "-m", "quire.api.cli", "run-batch", "-i", str(source), "-o"),
        *(str(target), "--model", str(model_folder), "--load-format", "dummy", "--backend"),
        *("reference", "--num-kv-blocks", "64", "--num-threads", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = target.read_bytes()
    told = [json.loads(line) for line in first.splitlines()]
    assert [one["custom_id"] for one in told] == [f"line-{index}" for index in range(12)]
    assert all(one["response"]["status_code"] == 200 for one in told)
    # A run that was cut off behind five answers asks the others only.
    target.unlink()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(b"".join(line + b"\n" for line in first.splitlines()[:5]) + b'{"id": "x')
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    resumed = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert [one["id"] for one in resumed[:5]] == [one["id"] for one in told[:5]]
    for one, before in zip(resumed, told, strict=True):
        if one["custom_id"] != "line-3":
            choices = one["response"]["body"]["choices"]
            assert choices == before["response"]["body"]["choices"]
    source.write_bytes(write([make_line(0), make_line(0)]))
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "line 2" in wrong.stderr


hostile = st.one_of(
    st.binary(max_size=60),
    st.just(write([make_line(0)]).rstrip()),
    st.builds(
        lambda name, url: msgspec.json.encode(make_line(0, url) | {"custom_id": name}),
        st.text(max_size=4),
        st.sampled_from((COMPLETIONS, "/x")),
    ),
)


@given(st.lists(hostile, max_size=6))
def test_any_bytes_are_lines_or_faults(tmp_path_factory: Any, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("hostile") / "in"
    path.write_bytes(b"\n".join(lines))
    found = scan(path, [COMPLETIONS], Limits())
    assert found.num_lines or found.faults
    numbers = [fault.line for fault in found.faults if fault.line is not None]
    assert numbers == sorted(set(numbers))


@given(num_whole=st.integers(0, 5), torn=st.integers(0, 200))
def test_a_journal_keeps_whole_lines_and_drops_what_was_torn(
    tmp_path_factory: Any, num_whole: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "answers"

    def make(index: int) -> Answer:
        response = LineResponse(200, "r", msgspec.Raw(b'{"a":1}'))
        return Answer(id=f"a{index}", custom_id=f"c{index}", response=response)

    with Journal(path) as journal:
        journal.read()
        for index in range(6):
            journal.add(make(index))
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    start = ends[num_whole - 1] if num_whole else 0
    cut = min(start + torn, ends[num_whole] - 1)
    path.write_bytes(data[:cut])
    with Journal(path) as journal:
        journal.read()
        assert len(journal) == num_whole
        for index in range(num_whole, 6):
            assert f"c{index}" not in journal
            journal.add(make(index))
    assert path.read_bytes() == data
