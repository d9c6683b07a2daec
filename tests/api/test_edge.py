"""Who may come in and how a request is named: keys, TLS, request ids, the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.api import cli
from quire.api.access_log import GONE, LOGGER_NAME
from quire.api.auth import OPEN_PATHS, ApiKeys, name_of, read_keys
from quire.api.limits import Limits
from quire.api.routes.table import ROUTES
from quire.api.server import Server, ServerOptions, bind, serve
from quire.api.web_files import FILE_PATHS
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError

BODY = {"prompt": "hi"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with two keys, for its owner alone."""
    file = tmp_path / "keys"
    file.write_text("# of the first team\n  one  \n\nzwölf\n#not-a-key\n", encoding="utf-8")
    file.chmod(0o600)
    return file


def rewrite(file: Path, text: str) -> None:
    """As an operator does it."""
    file.write_text(text)


async def test_every_route_but_health_is_closed(serve_fake: Any) -> None:
    """The routes are those of the application itself: a new one is here without being named."""
    fake = await serve_fake(api_keys=["one"])
    found = [
        (route.method, route.resource.canonical)
        for route in fake.server._runner.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    ]
    assert len([path for _, path in found if path not in FILE_PATHS]) == len(ROUTES)
    assert {"/health", "/", *FILE_PATHS} == OPEN_PATHS
    for method, path in found:
        url = fake.url + path.replace("{model}", "fake")
        async with fake.session.request(method, url) as response:
            assert (response.status == 401) == (path not in OPEN_PATHS), path
            if path not in OPEN_PATHS:
                assert response.headers["WWW-Authenticate"] == "Bearer"
                error = (await response.json())["error"]
                if path.startswith("/api/"):
                    assert "API key is missing" in error
                elif path.startswith("/v1/messages"):
                    assert error["type"] == "authentication_error"
                    assert "API key is missing" in error["message"]
                else:
                    assert error["code"] == "invalid_api_key"
                    assert "API key is missing" in error["message"]
    for path in ("/health/", "/health/x", "//health", "/%68ealth/", "/HEALTH", "/health;a"):
        async with fake.session.get(fake.url + path) as response:
            assert response.status == 401, path


def test_keys_of_a_file(key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_keys(key_file) == ["one", "zwölf"]
    assert caplog.messages == []
    key_file.chmod(0o644)
    assert read_keys(key_file) == ["one", "zwölf"]
    assert "can be read by others" in caplog.text
    for text in ("", "# one\n\n"):
        key_file.write_text(text)
        with pytest.raises(ConfigError, match="has no key"):
            read_keys(key_file)
    key_file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(key_file)
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys((), key_file.with_name("none"))


async def test_a_file_of_keys_is_read_again(
    serve_fake: Any, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake = await serve_fake(api_keys=["given"], api_key_file=str(key_file))

    async def opens(key: str) -> bool:
        headers = {"Authorization": f"Bearer {key}"}
        async with fake.session.get(f"{fake.url}/version", headers=headers) as response:
            return bool(response.status == 200)

    assert fake.server.can_reload
    keys = ["given", "one", "zwölf", "three", "#not-a-key", "# of the first team"]
    assert [await opens(key) for key in keys] == [True, True, True, False, False, False]
    rewrite(key_file, "three\n")
    fake.server.reload()
    assert [await opens(key) for key in keys] == [True, False, False, True, False, False]
    rewrite(key_file, "")
    fake.server.reload()
    assert "not read again" in caplog.text
    assert [await opens(key) for key in keys] == [True, False, False, True, False, False]


async def test_signals_reload_and_drain(
    model_folder: Path, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    config = EngineConfig(
        model=str(model_folder), load_format="dummy", backend="reference", num_kv_blocks=64
    )
    begun = asyncio.Event()
    options = ServerOptions(port=0, api_key_file=str(key_file))
    serving = asyncio.create_task(serve(config, options, lambda url, engine: begun.set()))
    await begun.wait()
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 30)
    assert "were read again" in caplog.text


async def test_tls_with_a_certificate_of_the_files(serve_fake: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    both, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    key.write_bytes(certificate.private_key_pem.bytes())
    both.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    fake = await serve_fake(ssl_certfile=str(both), ssl_keyfile=str(key))
    assert fake.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    url, body = f"{fake.url}/v1/completions", BODY | {"stream": True}
    async with fake.session.post(url, json=body, ssl=context) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await fake.session.get(f"{fake.url}/health", ssl=ssl.create_default_context())
    with pytest.raises(aiohttp.ClientError):
        await fake.session.get(fake.url.replace("https", "http") + "/health")
    # Another certificate, of an authority that the client does not know, serves from now on.
    other = trustme.CA().issue_cert("127.0.0.1")
    key.write_bytes(other.private_key_pem.bytes())
    both.write_bytes(b"".join(one.bytes() for one in other.cert_chain_pems))
    fake.server.reload()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{fake.url}/health", ssl=context)


def test_a_certificate_that_is_none_is_told(tmp_path: Path, serve_fake: Any) -> None:
    engine = serve_fake.engine()
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    given: list[dict[str, Any]] = [
        {"ssl_certfile": str(empty)},
        {"ssl_certfile": str(tmp_path / "none.pem")},
        {"ssl_keyfile": str(empty)},
    ]
    for options in given:
        with pytest.raises(ConfigError, match="ssl_"):
            Server(engine, ServerOptions(**options))


SANE = ["a", "x" * 128, "4f0c-11", "a b", "{}"]
ODD = ["", "x" * 129, "ä", "a\tb"]


@pytest.mark.parametrize("given", SANE + ODD)
async def test_a_sane_request_id_is_given_back(serve_fake: Any, given: str) -> None:
    fake = await serve_fake()
    headers = {"X-Request-Id": given}
    found = []
    for method, path in (("GET", "/version"), ("GET", "/v1/nothing"), ("POST", "/v1/completions")):
        async with fake.session.request(method, fake.url + path, headers=headers) as response:
            found.append(response.headers["X-Request-Id"])
            if response.status >= 400:
                assert (await response.json())["error"]["request_id"] == found[-1]
    if given in SANE:
        assert found == [given] * 3
    else:
        assert len(set(found)) == 3
        assert all(len(name) == 32 and name.isalnum() for name in found)


async def test_a_stream_names_its_request(serve_fake: Any) -> None:
    fake = await serve_fake()
    headers, body = {"X-Request-Id": "mine"}, BODY | {"stream": True}
    for _ in range(2):  # the same name twice is two requests
        async with fake.session.post(
            f"{fake.url}/v1/completions", json=body, headers=headers
        ) as response:
            assert response.headers["X-Request-Id"] == "mine"
            assert b"mine" not in await response.read()


async def test_an_internal_error_is_found_by_its_id(
    serve_fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake = await serve_fake(serve_fake.engine(pieces=(), failure=KeyError("x")))
    headers = {"X-Request-Id": "mine"}
    async with fake.session.post(
        f"{fake.url}/v1/completions", json=BODY, headers=headers
    ) as response:
        assert (await response.json())["error"]["request_id"] == "mine"
    assert "internal error in request mine" in caplog.text


async def test_the_access_log_tells_who_and_how_much(
    serve_fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    fake = await serve_fake(api_keys=["secret"], access_log="json")
    headers = {"Authorization": "Bearer secret", "X-Request-Id": "mine"}
    url = f"{fake.url}/v1/completions"
    for stream in (False, True):
        body = {"prompt": ["private", "hi"], "stream": stream, "user": "ann"}
        async with fake.session.post(f"{url}?key=hidden", json=body, headers=headers) as response:
            size = len(await response.read())
            assert response.status == 200
    async with fake.session.post(url, json=BODY) as response:
        assert response.status == 401
    async with fake.session.get(f"{fake.url}/health") as response:
        await response.read()
    whole, streamed, refused, health = map(json.loads, caplog.messages)
    for line in (whole, streamed):
        duration_ms = line.pop("duration_ms")
        assert 0 <= duration_ms < 60_000
        assert line.pop("response_id").startswith("cmpl-")
        assert line.pop("bytes") > 100
        assert line == {
            "method": "POST",
            "path": "/v1/completions",
            "status": 200,
            "request_id": "mine",
            "tenant": name_of("key", "secret"),
            "prompt_tokens": 9,
            "output_tokens": 6,
            "cached_tokens": 0,
        }
    assert size > 100
    assert refused["status"] == 401
    assert "tenant" not in refused
    assert health["path"] == "/health"
    for word in ("secret", "hidden", "private", "ann", "abc"):
        assert word not in caplog.text


async def test_a_client_that_goes_has_a_line(
    serve_fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    fake = await serve_fake(serve_fake.engine(gate=asyncio.Semaphore(0)), access_log="text")
    waiting = asyncio.create_task(fake.session.post(f"{fake.url}/v1/completions", json=BODY))
    await fake.engine.until(lambda: len(fake.engine.started) == 1)
    waiting.cancel()
    await fake.engine.until(lambda: len(fake.engine.aborted) == 1)
    await asyncio.wait_for(fake.server.state.idle.wait(), 10)
    (line,) = caplog.messages
    assert line.startswith(f"POST /v1/completions {GONE} ")


@given(st.text(alphabet=st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=140))
@settings(deadline=None, max_examples=50)
def test_no_request_id_breaks_a_line_of_the_log(text: str) -> None:
    from aiohttp.test_utils import make_mocked_request
    from quire.api.middleware import _request_id

    request = make_mocked_request("GET", "/", headers={"X-Request-Id": text})
    name = _request_id(request, ServerStateOf())  # type: ignore[arg-type]
    assert name in ("made", text)
    assert name.isprintable() and name.isascii() and 0 < len(name) <= 128


class ServerStateOf:
    """What a request id is made of."""

    limits = Limits()

    def new_id(self) -> str:
        return "made"


@pytest.fixture
def logger_is_left_alone() -> Iterator[None]:
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]


def test_the_access_log_is_lines_of_stdout(
    logger_is_left_alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cli._set_up_access_log()
    logging.getLogger(LOGGER_NAME).info("%s", '{"a": 1}')
    assert capsys.readouterr().out == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-queued-requests", "0"], "max_queued_requests is 0"),
        (["--max-nesting", "0"], "max_nesting is 0"),
        (["--sse-heartbeat-s", "-1"], "sse_heartbeat_s is -1"),
        (["--slow-reader-timeout-s", "nan"], "slow_reader_timeout_s is nan"),
        (["--max-body-bytes", "1KiB", "--stream-buffer-bytes", "1"], "stream_buffer_bytes is 1"),
        (["--access-log", "xml"], "invalid choice"),
    ],
)
def test_bad_limits_exit_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_key_file_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--api-key-file", "/nowhere/keys"]) == 1
    assert "api_key_file" in capsys.readouterr().err


def test_limits_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerOptions] = []

    async def serve(config: Any, options: ServerOptions, announce: Any) -> None:
        seen.append(options)

    monkeypatch.setattr("quire.api.server.serve", serve)
    assert cli.main(["serve", "--max-queued-requests", "9", "--max-body-bytes", "2MiB"]) == 0
    (options,) = seen
    assert options.limits == Limits(max_queued_requests=9, max_body_bytes=2 * 2**20)


async def test_limits_of_bytes_hold(serve_fake: Any) -> None:
    limits = Limits(max_body_bytes=1024, max_header_bytes=1024, max_nesting=3, max_answers=2)
    fake = await serve_fake(limits=limits)
    url = f"{fake.url}/v1/completions"
    for body, status in (
        ({"prompt": "x" * 1100}, 413),
        ({"prompt": ["a", "b", "c"]}, 400),
        ({"prompt": "a", "n": 3}, 400),
        ({"prompt": [[[[1]]]]}, 400),
        ({"prompt": ["a", "b"], "metadata": {"a": []}}, 200),
    ):
        async with fake.session.post(url, json=body) as response:
            assert response.status == status, body
    for headers in ({"a": "x" * 1100}, {f"a{place}": "" for place in range(140)}):
        async with fake.session.get(f"{fake.url}/health", headers=headers) as response:
            assert response.status == 400


def test_the_table_of_limits_is_complete() -> None:
    """docs/limits.md names each limit of the server with its option and its default."""
    text = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if "|" in line}
    for name, default in zip(Limits.__struct_fields__, Limits.__struct_defaults__, strict=True):
        row = rows[name]
        assert (f"`--{name.replace('_', '-')}`" in row) == (name in cli.LIMITS_HELP), row
        assert "none" in row or f"{default:,}".removesuffix(".0") in row, (row, default)


async def test_bind_is_loopback_alone() -> None:
    with bind(ServerOptions().host, 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    assert os.environ.get("QUIRE_API_KEY") is None
