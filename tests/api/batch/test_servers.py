"""Batches of whole servers with the real engine: one after another, and beside who waits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from quire import AsyncEngine
from quire.api.server import Server, ServerOptions, bind

URL: Any = "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@asynccontextmanager
async def serve(model: Path, folder: Path) -> AsyncIterator[tuple[AsyncEngine, openai.AsyncOpenAI]]:
    """A server that is stopped as a signal stops it, and a client of it."""
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference"}
    engine = AsyncEngine(
        model=str(model), num_kv_blocks=64, max_num_seqs=4, num_threads=1, **options
    )
    server = Server(engine, ServerOptions(port=0, files_dir=str(folder)))
    await engine.start()
    await server.start(bind("127.0.0.1", 0))
    try:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            yield engine, client
    finally:
        await server.close_archive()
        await engine.stop()
        await server.stop()


async def begin(client: openai.AsyncOpenAI, bodies: Sequence[dict[str, Any]]) -> str:
    lines = [
        {"custom_id": f"c{number}", "method": "POST", "url": URL, "body": body}
        for number, body in enumerate(bodies)
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = await client.files.create(file=("in", data), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h"
    )
    return batch.id


async def until_answered(client: openai.AsyncOpenAI, batch_id: str) -> None:
    """The test's time limit is the bound."""
    while True:
        counts = (await client.batches.retrieve(batch_id)).request_counts
        if counts is not None and counts.completed:
            return


async def test_the_next_server_goes_on_behind_what_was_answered(
    model_folder: Path, tmp_path: Path
) -> None:
    bodies = [{"prompt": f"cat {n}", "max_tokens": 6, "ignore_eos": True} for n in range(16)]
    folder = tmp_path / "a new" / "folder"
    async with serve(model_folder, folder) as (_, client):
        name = await begin(client, bodies)
        await until_answered(client, name)
    (journal,) = (folder / "batches").glob("*.jsonl")
    kept = journal.read_bytes()
    assert 0 < kept.count(b"\n") < 16
    # As after a kill: a line that was not written whole.
    journal.write_bytes(kept + b'{"id":"batch_req_torn","custom_id":"c15","resp')
    async with serve(model_folder, folder) as (engine, client):
        while (ended := await client.batches.retrieve(name)).status not in ENDED:
            pass
        assert ended.status == "completed" and ended.output_file_id is not None
        text = (await client.files.content(ended.output_file_id)).text
        num_asked = sum(one.num_requests for one in engine.metrics.tenants.values())
    told = [json.loads(line) for line in text.splitlines()]
    assert [one["custom_id"] for one in told] == [f"c{number}" for number in range(16)]
    ids = {json.loads(line)["id"] for line in kept.splitlines()}
    assert ids <= {one["id"] for one in told}
    assert num_asked == 16 - len(ids)


async def test_who_waits_comes_before_a_batch(model_folder: Path, tmp_path: Path) -> None:
    """A client is answered while most lines are not, and they take it no place."""
    bodies = [{"prompt": "the cat", "max_tokens": 10, "ignore_eos": True}] * 100
    async with serve(model_folder, tmp_path) as (engine, client):
        name = await begin(client, bodies)
        await until_answered(client, name)
        before = await client.batches.retrieve(name)
        for _ in range(3):
            await client.completions.create(model=engine.model_name, prompt="now", max_tokens=1)
        after = await client.batches.retrieve(name)
        assert before.request_counts is not None and after.request_counts is not None
        # A place is free at once: two of the four are all that a batch takes.
        assert after.request_counts.completed - before.request_counts.completed <= 6
        await client.batches.cancel(name)
        while (await client.batches.retrieve(name)).status not in ENDED:
            pass
