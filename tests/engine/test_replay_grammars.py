"""A recorded engine whose requests have grammars is run again to the same tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from quire import LLM, SamplingParams
from quire.api.replaying import replay_file
from quire.engine import replay as replaying
from quire.engine import trace
from quire.engine.structured import StructuredOutputsParams

PROMPT = "Tell me a story."
FORMS: dict[str, dict[str, Any]] = {
    "regex": {"regex": "[a-z]{3,12}( [a-z]+)*"},
    # An integer that no message can hold.
    "json": {"json": {"type": "array", "items": {"maximum": 10**30, "type": "integer"}}},
    "choice": {"choice": ["one or the other", "one of them"]},
    "gbnf": {"grammar": 'root ::= ("<" [a-z]+ ">")+'},
}
OPTIONS: dict[str, Any] = {
    "num_kv_blocks": 36,
    "block_size": 4,
    "max_model_len": 64,
    "max_num_batched_tokens": 24,
    "overlap": 2,
    "num_threads": 1,
}


def make_params(name: str | None, seed: int, **changes: Any) -> SamplingParams:
    form = None if name is None else StructuredOutputsParams(**FORMS[name])
    return SamplingParams(
        temperature=1.0, seed=seed, max_tokens=24, structured_outputs=form, **changes
    )


def drive(llm: LLM) -> dict[str, list[int]]:
    """Answer requests of every form, one with two answers, one forked inside its form."""
    front = llm._front
    states: dict[str, Any] = {}
    for index, name in enumerate((*FORMS, None, *FORMS)):
        params = make_params(name, index, ignore_eos=index == 0, logprobs=2 if index % 3 else None)
        prepared = front.prepare(f"{PROMPT} {index}", params, f"r{index}")
        states[f"r{index}"] = front.add(prepared, 0.0)
    front.add(front.prepare(PROMPT, make_params("json", 3, n=2), "twins"), 0.0)
    while front.core.has_unfinished:
        front.core.launch()
        front.deliver(front.core.land(), 0.0)
        if "fork" not in states and states["r0"].num_output_tokens == 5:
            prepared = front.fork("r0", replace(states["r0"].request.params, seed=7), "fork")
            states["fork"] = front.add(prepared, 0.0)
    return {name: [*state.output().outputs[0].token_ids] for name, state in states.items()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """A log, and the answers."""
    path = tmp_path_factory.mktemp("log") / "engine.log"
    with LLM(record=str(path), **OPTIONS) as llm:
        answers = drive(llm)
        assert llm.scheduler.stats.num_preemptions > 0
        for index, name in enumerate((*FORMS, None, *FORMS)):
            text = llm.get_tokenizer().decode(answers[f"r{index}"])
            if name == "choice":
                assert any(one.startswith(text) for one in FORMS[name]["choice"]), text
    return path, answers


def test_a_log_holds_grammars_and_not_what_was_asked(
    recorded: tuple[Path, dict[str, list[int]]],
) -> None:
    log = trace.read_log(recorded[0])
    requests = {e.request.request_id: e.request for e in log.entries if isinstance(e, trace.Added)}
    assert log.is_foldable and len(requests) == 2 * len(FORMS) + 4
    assert all(one.params.structured_outputs is None for one in requests.values())
    plain = [name for name, one in requests.items() if one.grammar is None]
    assert plain == [f"r{len(FORMS)}"]
    fork, parent = requests["fork"].grammar, requests["r0"].grammar
    assert fork is not None and parent is not None
    assert fork.source == parent.source and (fork.num_read, parent.num_read) == (5, 0)


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_a_log_with_grammars_replays_to_the_same_plans_and_bits(
    recorded: tuple[Path, dict[str, list[int]]], backend: str
) -> None:
    verdict = replaying.replay(trace.read_log(recorded[0]), {"backend": backend})
    assert verdict.mismatch is None
    assert verdict.num_requests == 2 * len(FORMS) + 4 and verdict.num_tokens > 150


def test_each_request_runs_alone_inside_its_grammar(
    recorded: tuple[Path, dict[str, list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The fork too, which begins inside its parent's."""
    path, answers = recorded
    for name in ("r0", "r1", "r3", "fork"):
        assert replay_file(str(path), {}, name) == 0
        told = re.search(r"(\d+) tokens compared", capsys.readouterr().out)
        assert told is not None and int(told[1]) == len(answers[name]) > 0


def test_operations_are_compared_inside_grammars(
    recorded: tuple[Path, dict[str, list[int]]],
) -> None:
    log = trace.read_log(recorded[0])
    config = replaying.replay_config(log.header, {})
    sides = [
        replaying.load_traced(replace(config, backend=backend))
        for backend in ("kernels", "reference")
    ]
    loaded, tracers = zip(*sides, strict=True)
    assert replaying.compare_backends(log, loaded, tracers, 10) is None


def test_another_grammar_is_noticed(
    recorded: tuple[Path, dict[str, list[int]]], tmp_path: Path
) -> None:
    """What is compared was drawn from the masks of the log's grammars."""
    log = trace.read_log(recorded[0])
    path = tmp_path / "other.log"
    writer = trace.LogWriter(path, 2**26, log.header)
    for entry in log.entries:
        changed = entry
        if isinstance(entry, trace.Added) and entry.request.grammar is not None:
            grammar = replace(entry.request.grammar, source='start: "x"')
            changed = replace(entry, request=replace(entry.request, grammar=grammar))
        writer.write(changed, {})
    writer.close()
    mismatch = replaying.replay(trace.read_log(path), {}).mismatch
    assert mismatch is not None and "is recorded" in mismatch.what


def test_a_request_whose_form_no_message_can_hold_is_recorded(
    recorded: tuple[Path, dict[str, list[int]]],
) -> None:
    """10**30 in a schema: it was served, and its grammar says it as text."""
    log = trace.read_log(recorded[0])
    sources = [
        e.request.grammar.source
        for e in log.entries
        if isinstance(e, trace.Added) and e.request.grammar is not None
    ]
    assert any(json.dumps(10**30) in source for source in sources)
