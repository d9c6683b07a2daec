"""Whose request it is: the API key's, else that of `user`; shown without telling either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from quire import AsyncEngine
from quire.api import cli
from quire.api.auth import name_of
from quire.api.server import Server, ServerOptions, bind
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError


async def tenants(
    engine: AsyncEngine, asked: list[tuple[str, dict[str, Any]]], keys: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """Ask with each (key, body); return what the metrics say of whose requests ended."""
    server = Server(engine, ServerOptions(api_keys=keys))
    await server.start(bind("127.0.0.1", 0))
    try:
        async with aiohttp.ClientSession() as session:
            for key, body in asked:
                whole = {"prompt": [100, 101], "max_tokens": 1} | body
                headers = {"Authorization": f"Bearer {key}"}
                url = f"{server.url}/v1/completions"
                async with session.post(url, json=whole, headers=headers) as response:
                    assert response.status == 200, await response.text()
            headers = {"Authorization": f"Bearer {[*keys, ''][0]}"}
            async with session.get(f"{server.url}/metrics", headers=headers) as response:
                text = await response.text()
    finally:
        await server.stop()
    return [
        (sample.labels["tenant"], sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "quire:request_queue_time_seconds_count"
    ]


async def test_a_key_is_a_tenant_whatever_user_it_names(engine: AsyncEngine) -> None:
    asked = [("one", {"user": "x"}), ("two", {}), ("one", {"user": "y"})]
    found = await tenants(engine, asked, ["one", "two"])
    assert found == [(name_of("key", "one"), 2), (name_of("key", "two"), 1)]


async def test_without_keys_the_user_is_the_tenant(engine: AsyncEngine) -> None:
    found = await tenants(engine, [("", {"user": "ann"}), ("", {}), ("", {"user": "ann"})])
    assert found == [(name_of("user", "ann"), 2), ("", 1)]


def test_weights_are_given_by_key_or_by_user() -> None:
    config = EngineConfig(tenant_weights={"one": 2.0})
    assert cli._name_tenants(config, ["one"]).tenant_weights == {name_of("key", "one"): 2.0}
    assert cli._name_tenants(config, []).tenant_weights == {name_of("user", "one"): 2.0}
    with pytest.raises(ConfigError, match="1 names that are none of the API keys"):
        cli._name_tenants(config, ["two"])


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), True, "2"])
def test_weights_that_are_none_are_refused(weight: Any) -> None:
    with pytest.raises(ConfigError, match="tenant_weights says .* for 'a'"):
        EngineConfig(tenant_weights={"a": weight})


@pytest.mark.parametrize("text", ["", "2", '{"a": "2"}', '{"a": NaN}', "{"])
def test_weights_on_the_command_line_are_json(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--tenant-weights", text])
    assert "is not an object of numbers" in capsys.readouterr().err
