"""Fixtures of the API's tests: servers with the real engine on a tiny model, and a faked one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from quire.api.server import Server, ServerOptions, bind
from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.errors import ParamsError
from quire.engine.metrics import EngineMetrics
from quire.engine.params import RequestOutputKind, SamplingParams
from quire.engine.parsing.choose import Parsers
from quire.engine.request import CompletionOutput, Request, RequestOutput
from quire.engine.text.prepare import Prepared
from quire.engine.timeline import Timelines
from quire.engine.vectors import PoolingConfig

T = TypeVar("T")

MAX_MODEL_LEN = 128
VOCAB_SIZE = 320
TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- for document in documents or () %}
{{- '<|im_start|>' + document.title + '\\n' + document.text + '<|im_end|>\\n' }}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def make_model(folder: Path) -> Path:
    """A Qwen3 of random weights (load_format dummy) with a byte-level tokenizer and a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the cat ate"] * 8, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass(slots=True, eq=False)
class Live:
    """A server in a thread of its own, and its engine."""

    engine: AsyncEngine
    server: Server
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return self.server.url

    def call(self, function: Callable[[], T]) -> T:
        """Call a function where the engine lives."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def num_used_blocks(self) -> int:
        """KV blocks that requests hold once no step is in flight."""
        core = self.engine.front.core
        while self.call(lambda: core.oldest is not None):
            pass
        return self.call(lambda: core.scheduler.num_blocks - core.scheduler.num_free_blocks)

    def num_unfinished(self) -> int:
        """Requests that the engine has."""
        return self.call(lambda: self.engine.num_unfinished)

    def wait_until_empty(self) -> None:
        """Wait for aborts to arrive; the test's time limit is the bound."""
        while self.num_unfinished():
            pass

    def wait_until_begun(self) -> None:
        """Wait for some request to arrive."""
        while not self.num_unfinished():
            pass

    def num_aborted(self) -> int:
        """Requests that were ended before their end, so far."""
        return self.call(lambda: self.engine.metrics.num_finished["abort"])

    @contextmanager
    def aborts(self, number: int = 1) -> Iterator[None]:
        """What is done inside ends so many requests before their end, and leaves nothing."""
        before = self.num_aborted()
        yield
        self.wait_until_empty()
        assert self.num_aborted() == before + number
        assert self.num_used_blocks() == 0

    async def cancel(self, asking: Coroutine[Any, Any, None]) -> None:
        """Ask in a task and cancel it once the request has arrived: that ends the request too."""
        with self.aborts():
            task = asyncio.create_task(asking)
            await asyncio.to_thread(self.wait_until_begun)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint without weights."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def live(model_folder: Path) -> Iterator[Live]:
    """The real engine behind a real server."""
    engine = AsyncEngine(
        model=str(model_folder),
        load_format="dummy",
        backend="reference",  # the server cannot tell; no kernels to compile
        served_model_name="tiny",
        num_kv_blocks=64,
        max_num_seqs=16,
        num_threads=1,
        reasoning_config={"reasoning_start_str": "sat", "reasoning_end_str": " cat ate."},
    )
    with served(engine) as live:
        yield live


@contextmanager
def served(engine: AsyncEngine) -> Iterator[Live]:
    """Serve from a thread of its own."""
    loop = asyncio.new_event_loop()
    server = Server(engine, ServerOptions(port=0))

    async def start() -> None:
        await engine.start()
        await server.start(bind("127.0.0.1", 0))

    async def stop() -> None:
        await engine.stop()
        await server.stop()

    with closing(loop):
        loop.run_until_complete(start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield Live(engine, server, loop)
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


@pytest.fixture(scope="module")
def demo() -> Iterator[Live]:
    """The bundled model, whose template knows tools."""
    with served(AsyncEngine(served_model_name="demo", num_kv_blocks=256, num_threads=1)) as live:
        yield live


class FakeTokenizer:
    """One token a character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


class FakeReading:
    """Twin of Reading: has the outputs of a stream, which waits until each is taken."""

    def __init__(
        self, outputs: AsyncGenerator[RequestOutput, None], call: Callable[[], None]
    ) -> None:
        self._call = call
        self._next: RequestOutput | Exception | None = None
        self._taken = asyncio.Event()
        self._task = asyncio.create_task(self._run(outputs))

    def more(self) -> None:
        return None

    def take(self) -> RequestOutput | None:
        given, self._next = self._next, None
        self._taken.set()
        if isinstance(given, Exception):
            raise given
        return given

    def close(self) -> None:
        self._task.cancel()

    async def _run(self, outputs: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async with aclosing(outputs):
                async for self._next in outputs:
                    self._taken.clear()
                    self._call()
                    await self._taken.wait()
        except Exception as error:
            self._next = error
            self._call()


@dataclass(slots=True, eq=False)
class FakeEngine:
    """Answers what it is told, when it is told; keeps what became of each request."""

    pieces: Sequence[str] = ("a", "b", "c")
    failure: Exception | None = None
    """Raised after the first piece, or before any when `pieces` is empty."""
    error: str | None = None
    """The last output says finish_reason "error" and this."""
    gate: asyncio.Semaphore | None = None
    """One permit for each piece."""
    is_running: bool = True
    is_sleeping: bool = False
    num_waiting: int = 0
    config: EngineConfig = field(default_factory=lambda: EngineConfig(model="fake"))
    max_model_len: int = MAX_MODEL_LEN
    model_name: str = "fake"
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    parsers: Parsers = field(default_factory=Parsers)
    pooling: PoolingConfig = field(default_factory=lambda: PoolingConfig(beside=True, width=4))
    auto_tools: bool = True
    metrics: EngineMetrics = field(default_factory=lambda: EngineMetrics("fake"))
    timelines: Timelines = field(default_factory=lambda: Timelines(lambda: 0.0))
    live: Any = None
    """Nobody watches it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    @property
    def num_unfinished(self) -> int:
        return len(self.started) - len(self.ended) - len(self.aborted)

    def chat_prompt(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        return "".join(message["content"] for message in messages)

    async def prepare(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
    ) -> Prepared:
        ids = prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt
        if max(ids) >= 2**20:
            raise ParamsError(f"prompt has {max(ids)}: ids are below {2**20}.", "prompt")
        assert params is not None
        assert request_id is not None
        request = Request(
            request_id=request_id,
            prompt_token_ids=np.array(ids, dtype=np.int32),
            params=params,
            seed=7 if params.seed is None else params.seed,
        )
        return Prepared(request, None)

    async def generate(
        self,
        prompt: Any,
        params: Any = None,
        request_id: Any = None,
        *,
        on_added: Callable[[], None] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        request = prompt.request
        deltas = request.params.output_kind is RequestOutputKind.DELTA
        name = request.request_id
        self.started.append(name)
        if on_added is not None:
            on_added()
        self.changed.set()
        num_done = 0
        try:
            for index, piece in enumerate(self.pieces):
                if self.gate is not None:
                    await self.gate.acquire()
                await asyncio.sleep(0)
                num_done = index + 1
                ends = num_done == len(self.pieces)
                if deltas or ends:
                    text = piece if deltas else "".join(self.pieces)
                    yield self._output(request, text, ends)
                if self.failure is not None:
                    raise self.failure
            if self.failure is not None:
                raise self.failure
        finally:
            (self.ended if num_done == len(self.pieces) else self.aborted).append(name)
            self.changed.set()

    def read(
        self,
        prepared: Prepared,
        call: Callable[[], None],
        *,
        on_added: Callable[[], None] | None = None,
    ) -> FakeReading:
        return FakeReading(self.generate(prepared, on_added=on_added), call)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for the requests to come to a state."""
        async with asyncio.timeout(10):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    def _output(self, request: Request, text: str, ends: bool) -> RequestOutput:
        reason = ("error" if self.error else "stop") if ends else None
        completion = CompletionOutput(
            index=0,
            text=text,
            token_ids=tuple(map(ord, text)),
            finish_reason=reason,  # type: ignore[arg-type]
            seed=request.seed,
        )
        return RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=tuple(request.prompt_token_ids.tolist()),
            outputs=(completion,),
            finished=ends,
            error=self.error if ends else None,
        )


@dataclass(slots=True, eq=False)
class Faked:
    """A server around a FakeEngine in the test's own loop, and a client's session."""

    engine: FakeEngine
    server: Server
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return self.server.url


ServeFake = Callable[..., Any]


@pytest.fixture
async def serve_fake() -> AsyncIterator[ServeFake]:
    """A function that starts a server around a FakeEngine."""
    servers: list[Server] = []
    async with aiohttp.ClientSession() as session:

        async def start(engine: FakeEngine | None = None, **options: Any) -> Faked:
            engine = engine or FakeEngine()
            server = Server(engine, ServerOptions(port=0, **options))  # type: ignore[arg-type]
            await server.start(bind("127.0.0.1", 0))
            servers.append(server)
            return Faked(engine, server, session)

        start.engine = FakeEngine  # type: ignore[attr-defined]
        yield start
    for server in servers:
        await server.stop()


@pytest_asyncio.fixture
async def engine(model_folder: Path) -> AsyncIterator[AsyncEngine]:
    """A real engine with random weights, in the loop of the test."""
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference"}
    async with AsyncEngine(
        model=str(model_folder), num_kv_blocks=64, num_threads=1, **options
    ) as made:
        yield made
