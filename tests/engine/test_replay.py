"""A recorded engine can be run again: the same plans, the same bits, on either backend."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from quire import LLM, SamplingParams
from quire.api.replaying import replay_file
from quire.engine import replay as replaying
from quire.engine import trace
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.device import warm_up
from quire.engine.device.runner import ModelRunner
from quire.engine.errors import ConfigError, ParamsError
from quire.engine.plan import Scored, StepPlan, StepResult
from quire.engine.request import Request

NUM_REQUESTS = 24
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "num_kv_blocks": 10,
    "block_size": 4,
    "max_model_len": 40,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 6,
    "tenant_weights": {"secret tenant": 3.0},
}


def make_request(name: str, prompt: list[int], *, tenant: str = "", **options: Any) -> Request:
    params = SamplingParams(**({"max_tokens": 10, "ignore_eos": True} | options))
    ids = np.array(prompt, np.int32)
    return Request(
        request_id=name, prompt_token_ids=ids, params=params, seed=len(name), tenant=tenant
    )


def drive(core: EngineCore, rng: random.Random) -> None:
    """Add, fork, abort and step at random, with preemptions, hits and a cleared cache."""
    for index in range(NUM_REQUESTS):
        prompt = [*range(1, rng.randint(2, 8)), rng.randrange(60)]
        logprobs = rng.choice((None, 2))
        temperature = rng.choice((0.0, 1.0))
        tenant = rng.choice(("", "secret tenant", "another"))
        options: dict[str, Any] = {"logprobs": logprobs, "temperature": temperature}
        options["prompt_logprobs"] = (None, None, 1, None)[index % 4]
        core.add(make_request(f"r{index}", prompt, tenant=tenant, **options))
        if rng.random() < 0.2:
            core.abort(f"r{rng.randrange(index + 1)}")
        core.launch()
        if index == 10:
            known = [*prompt]
            core.fork(f"r{index}", make_request("fork", known, temperature=1.0))
        if rng.random() < 0.6 and core.oldest is not None:
            core.land()
    while core.has_unfinished:
        core.launch()
        core.land()
    assert core.reset_prefix_cache()
    core.add(make_request("last", [1, 2, 3]))
    while core.has_unfinished:
        core.launch()
        core.land()


@pytest.fixture
def log(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "engine.log"
    with LLM(str(tiny), record=str(path), overlap=2, **OPTIONS) as llm:
        drive(llm.core, random.Random(3))
        assert llm.scheduler.stats.num_preemptions > 0
        assert llm.scheduler.stats.prefix_hits > 0
    return path


def test_a_log_tells_tenants_apart_without_naming_them(log: Path) -> None:
    assert b"secret tenant" not in log.read_bytes()
    read = trace.read_log(log)
    (favourite,) = read.header.config.tenant_weights
    tenants = {e.request.tenant for e in read.entries if isinstance(e, trace.Added)}
    assert favourite in tenants and "" in tenants and len(tenants) == 3


@pytest.mark.parametrize("with_text", [False, True])
def test_texts_are_recorded_only_when_asked(
    with_text: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "engine.log"
    params = SamplingParams(max_tokens=3, stop=["a stop string"])
    with LLM(record=str(path), record_text=with_text, num_kv_blocks=64) as llm:
        (output,) = llm.generate("Once upon a time", params, use_tqdm=False)
    for text in (b"upon a time", b"a stop string"):
        assert (text in path.read_bytes()) == with_text
    assert replay_file(str(path), {}, output.request_id) == 0
    assert ("Once upon a time" in capsys.readouterr().out) == with_text


def test_texts_need_a_tokenizer_and_a_file() -> None:
    with pytest.raises(ConfigError, match="record_text needs record"):
        EngineConfig(record_text=True)
    with pytest.raises(ConfigError, match="and a tokenizer"):
        EngineConfig(record_text=True, record="x", skip_tokenizer_init=True)


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_a_log_replays_to_the_same_plans_and_bits(log: Path, backend: str) -> None:
    verdict = replaying.replay(trace.read_log(log), {"backend": backend})
    assert verdict.mismatch is None
    assert verdict.num_requests == NUM_REQUESTS + 2
    assert verdict.num_steps > NUM_REQUESTS
    assert verdict.num_tokens > 100


def test_each_request_runs_alone_to_the_recorded_tokens(log: Path) -> None:
    read = trace.read_log(log)
    found, unknown = replaying.recorded_requests(read)
    assert not unknown
    for name in ("r0", "r7", "fork", "last"):
        verdict = replaying.replay_requests(read, {}, name)
        assert verdict.mismatch is None
        assert found[name].ended or verdict.num_tokens == 10


def test_steps_tell_of_prompts_and_their_digests_know(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another bit in what is told of one token of a prompt."""
    told: list[StepResult] = []
    execute = ModelRunner.execute

    def changed(self: ModelRunner, plan: StepPlan) -> StepResult:
        result = execute(self, plan)
        if result.prompt_logprobs and not told:
            told.append(result)
            result.prompt_logprobs[0].sampled[-1] += 1e-6
        return result

    monkeypatch.setattr(ModelRunner, "execute", changed)
    mismatch = replaying.replay(trace.read_log(log), {}).mismatch
    assert mismatch is not None and len(told) == 1
    assert mismatch.step == told[0].step
    assert "their log probabilities are not" in mismatch.what


def test_digests_tell_scored_tokens_apart() -> None:
    plan = warm_up.PLANS[0]
    digests = {
        trace.plan_digest(msgspec.structs.replace(plan, scored=scored))
        for scored in ((), (Scored(0, 1, 2, 0),), (Scored(0, 1, 2, 1),), (Scored(1, 1, 2, 0),))
    }
    assert len(digests) == 4


def test_an_unknown_request_is_named(log: Path) -> None:
    with pytest.raises(ParamsError, match="no request 'nobody': it has 26, as r0"):
        replaying.replay_requests(trace.read_log(log), {}, "nobody")


def tampered(log: Path, tmp_path: Path, step: int) -> Path:
    """Write the log anew with another token in the first row of a step."""
    read = trace.read_log(log)
    path = tmp_path / "tampered.log"
    writer = trace.LogWriter(path, 2**26, read.header)
    for entry in read.entries:
        changed = entry
        if isinstance(entry, trace.Landed) and entry.step == step:
            tokens = np.frombuffer(entry.token_ids, "<i4").copy()
            tokens[0] ^= 1
            changed = trace.Landed(entry.step, entry.slots, tokens.tobytes(), entry.logprobs)
        writer.write(changed, {})
    writer.close()
    return path


def test_the_first_other_token_is_named(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = trace.read_log(log)
    landed = [one for one in read.entries if isinstance(one, trace.Landed) and one.token_ids]
    step = landed[len(landed) // 2].step
    status = replay_file(str(tampered(log, tmp_path, step)), {})
    told = capsys.readouterr().out
    assert status == 1
    assert f"First difference in step {step}, request r" in told
    assert "None differs" in told


def test_a_wrong_operation_is_named_with_its_layer(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product that goes wrong in layer 1 of one backend from some step on."""
    read = trace.read_log(log)
    config = replaying.replay_config(read.header, {})
    sides = [replaying.load_traced(config) for _ in range(2)]
    (left, one), (right, other) = sides
    down = right.runner.model.weights.layers[1].down
    correct_ops = other._ops
    correct = correct_ops.linear
    calls = 0

    def wrong(x: torch.Tensor, weight: Any) -> torch.Tensor:
        nonlocal calls
        given = correct(x, weight)
        if weight is down:
            calls += 1
            if calls == 5:
                given[-1, 3] += 1
        return given

    ops = type("Wrong", (), {"__getattr__": lambda _, name: getattr(correct_ops, name)})()
    ops.linear = wrong
    monkeypatch.setattr(other, "_ops", ops)
    found = replaying.compare_backends(read, (left, right), (one, other), 10**9)
    assert found is not None
    assert found.name == "layer 1, down (linear)"
    assert found.step == 5
    assert found.request_id.startswith("r")


def test_equal_backends_have_no_difference(log: Path) -> None:
    read = trace.read_log(log)
    config = replaying.replay_config(read.header, {})
    sides = [
        replaying.load_traced(replace(config, backend=backend))
        for backend in ("kernels", "reference")
    ]
    loaded, tracers = zip(*sides, strict=True)
    assert replaying.compare_backends(read, loaded, tracers, 10**9) is None
    assert all(len(tracer.calls or ()) > 10 for tracer in tracers)


def test_another_plan_is_noticed(log: Path) -> None:
    verdict = replaying.replay(trace.read_log(log), {"max_num_batched_tokens": 5})
    assert verdict.mismatch is not None
    assert "the plan is another one" in verdict.mismatch.what


def test_a_log_stays_within_its_bound_and_tells_what_is_left(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with LLM(str(tiny), record=str(path), record_bytes=2**16, **OPTIONS) as llm:
        core = llm.core
        for index in range(300):
            core.add(make_request(f"request-number-{index}", [index % 60 + 1] * 20))
        while core.has_unfinished:
            core.launch()
            core.land()
    parts = trace.parts_of(path)
    assert len(parts) == trace.NUM_PARTS
    assert sum(one.stat().st_size for one in parts) <= 2**16
    read = trace.read_log(path)
    assert not read.is_whole
    assert len(read.header.slots) > 0


def test_without_its_beginning_a_log_replays_the_requests_it_tells(
    log: Path, tmp_path: Path
) -> None:
    read = trace.read_log(log)
    begin = next(
        i for i, e in enumerate(read.entries) if isinstance(e, trace.Launched) and e.step == 8
    )
    part = trace.Log(trace.Header(1, "x", read.header.config, 3, {0: "r0"}), [], False)
    rest = part._replace(entries=read.entries[begin:])
    verdict = replaying.replay_requests(rest, {})
    assert verdict.mismatch is None
    assert verdict.unknown == ["r0"]
    assert 10 < verdict.num_requests < NUM_REQUESTS
    assert verdict.num_tokens > 40


def test_a_cut_off_log_is_read_up_to_there(log: Path) -> None:
    data = log.read_bytes()
    log.write_bytes(data[:-5])
    read = trace.read_log(log)
    assert read.is_whole
    assert replaying.replay(read, {}).mismatch is None


@pytest.mark.parametrize("data", [b"", b"hello, this is no log", b"\x05\x00\x00\x00abcde"])
def test_what_is_no_log_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="not a log"):
        trace.read_log(path)


def test_a_log_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing' does not exist"):
        trace.read_log(tmp_path / "nothing")


def test_no_text_and_no_salt_is_recorded(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    recorder = trace.Recorder(path, EngineConfig(model=str(tiny)), "0")
    request = make_request("r", [1], stop=["secret words"])
    recorder.added(replace(request, cache_salt="a salt of a tenant"), None)
    recorder.closed()
    data = path.read_bytes()
    assert b"secret words" not in data
    assert b"a salt of a tenant" not in data


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with LLM(str(tiny), record=str(tmp_path / "log"), **OPTIONS) as llm:
        monkeypatch.setattr(trace.LogWriter, "write", full)
        outputs = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3), use_tqdm=False)
    assert len(outputs[0].outputs[0].token_ids) == 3
    assert "recording ends" in caplog.text


def test_a_place_that_cannot_be_written_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="record is '/nowhere/log': it cannot be written"):
        LLM(str(tiny), record="/nowhere/log", **OPTIONS)
