"""Answers as they grow: the same text whole, in deltas and at the end; stops, reasons, logprobs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.params import RequestOutputKind, SamplingParams
from quire.engine.request import (
    CompletionOutput,
    Finished,
    LogprobRows,
    PromptLogprobs,
    Request,
)
from quire.engine.text.detokenizer import start_detokenizer
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.output import OutputState, TokenLogprobs, take_row
from quire.engine.text.tokenizer import JsonTokenizer
from quire.fuzz.text_cases import Cut, cut_slowly, make_byte_level, token_ids

TOKENIZER = JsonTokenizer(make_byte_level(), TokenizerConfig())
PROMPT = TOKENIZER.encode("The door")
EOS = 1
DOOR = TOKENIZER.encode(" opened the door. 'Who is there?' she asked")


def make_state(
    params: SamplingParams | None = None, tokenizer: Any = TOKENIZER, prompt: Any = PROMPT
) -> OutputState:
    request = Request(
        request_id="r",
        prompt_token_ids=np.array(prompt, np.int32),
        params=params or SamplingParams(),
        seed=99,
        eos_token_ids=(EOS,),
    )
    return OutputState(request, "The door", tokenizer)


def finish(reason: Any = "length", **options: Any) -> Finished:
    return Finished(0, reason, **options)


class Ran(NamedTuple):
    deltas: list[CompletionOutput]
    final: CompletionOutput
    num_pushed: int


def run(state: OutputState, ids: list[int], end: Finished | None = None, *, every: int = 1) -> Ran:
    """Push all tokens as an engine that hears of stop strings, an output after each few."""
    deltas = []
    num_pushed = 0
    for i, token_id in enumerate(ids):
        stopped = state.push(token_id, (end or finish()) if i == len(ids) - 1 else None)
        num_pushed += 1
        if num_pushed % every == 0 or state.finished:
            deltas.append(state.output(RequestOutputKind.DELTA).outputs[0])
        if stopped:
            assert state.finished
            break
    return Ran(deltas, state.output().outputs[0], num_pushed)


@given(data=st.data())
def test_deltas_add_up_to_the_answer(data: st.DataObject) -> None:
    ids = [*data.draw(token_ids(TOKENIZER)), EOS + 40]
    stops = data.draw(st.lists(st.sampled_from(["e", "the", "oo", " ", "é", "ab"]), max_size=3))
    include = data.draw(st.booleans())
    skip = data.draw(st.booleans())
    params = SamplingParams(
        stop=stops,
        include_stop_str_in_output=include,
        skip_special_tokens=skip,
        min_tokens=data.draw(st.integers(0, 8)),
        max_tokens=None,
    )
    deltas, final, num_pushed = run(make_state(params), ids, every=data.draw(st.integers(1, 4)))
    assert "".join(delta.text for delta in deltas) == final.text
    assert sum((delta.token_ids for delta in deltas), ()) == final.token_ids
    assert final.token_ids == tuple(ids[:num_pushed])
    expected = stop_slowly(ids, params)
    assert (final.text, final.stop_reason) == expected
    assert final.finish_reason == ("length" if expected.stop is None else "stop")
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


@given(data=st.data())
def test_more_text_is_what_a_delta_says(data: st.DataObject) -> None:
    """Whoever asks for more text first, and for an output where there is none, misses nothing."""
    params = SamplingParams(stop=data.draw(st.sampled_from([[], ["the"]])))
    ids = data.draw(token_ids(TOKENIZER))
    one, other = make_state(params), make_state(params)
    assert one.more() is None, "the first delta names the prompt"
    for number, token_id in enumerate([*ids, EOS + 40]):
        end = finish() if number == len(ids) else None
        assert one.push(token_id, end) == other.push(token_id, end)
        if data.draw(st.booleans()) and not one.finished:
            continue
        delta, more = other.output(RequestOutputKind.DELTA).outputs[0], one.more()
        if more is not None:
            assert delta.finish_reason is None
            assert (more.text, more.num_tokens) == (delta.text, len(delta.token_ids))
        else:
            assert one.output(RequestOutputKind.DELTA).outputs[0] == delta
        if one.finished:
            break
    assert one.finished and one.more() is None, "the last one says why"


def test_log_probabilities_are_more_than_text() -> None:
    state = make_state(SamplingParams(logprobs=0))
    for token_id in DOOR[:2]:
        state.push(token_id, None, TokenLogprobs(-1.0, 1, (), ()))
        assert state.more() is None
        state.output(RequestOutputKind.DELTA)


def stop_slowly(ids: list[int], params: SamplingParams) -> Cut:
    """The whole text, cut where the first stop string past min_tokens ends."""
    detokenizer = start_detokenizer(
        TOKENIZER, PROMPT, skip_special_tokens=params.skip_special_tokens
    )
    parts = [detokenizer.push(token_id) for token_id in ids]
    parts[-1] += detokenizer.flush()
    unarmed = sum(map(len, parts[: params.min_tokens]))
    include = params.include_stop_str_in_output
    return cut_slowly("".join(parts), list(params.stop or ()), include=include, unarmed=unarmed)


def test_cumulative_outputs_grow_and_name_the_request() -> None:
    state = make_state()
    state.num_cached_tokens = 5
    texts = []
    for token_id in DOOR:
        assert not state.push(token_id)
        output = state.output()
        texts.append(output.outputs[0].text)
        assert output.outputs[0].text.startswith(texts[-2] if len(texts) > 1 else "")
    assert texts[-1] == " opened the door. 'Who is there?' she asked"
    assert (output.request_id, output.prompt, output.finished) == ("r", "The door", False)
    assert output.prompt_token_ids == tuple(PROMPT)
    assert (output.num_cached_tokens, output.outputs[0].seed) == (5, 99)
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_nothing_of_a_stop_string_is_ever_shown() -> None:
    deltas, final, _ = run(make_state(SamplingParams(stop=["door. 'Who"])), DOOR)
    assert "".join(delta.text for delta in deltas) == final.text == " opened the "
    assert (final.finish_reason, final.stop_reason) == ("stop", "door. 'Who")


def test_what_comes_after_a_stop_string_is_dropped_once() -> None:
    state = make_state(SamplingParams(stop="door"))
    pushed = [state.push(token_id) for token_id in DOOR]
    assert pushed.count(True) == 1
    num_tokens = pushed.index(True) + 1
    assert not state.push(-1, finish("abort"))
    final = state.output().outputs[0]
    assert final.token_ids == tuple(DOOR[:num_tokens])
    assert (final.finish_reason, final.stop_reason, final.text) == ("stop", "door", " opened the ")
    delta = state.output(RequestOutputKind.DELTA).outputs[0]
    assert delta.text == " opened the "
    assert state.output(RequestOutputKind.DELTA).outputs[0].token_ids == ()


def test_the_engine_is_not_told_of_a_stop_that_it_ended_itself() -> None:
    state = make_state(SamplingParams(stop="asked"))
    assert [state.push(token_id) for token_id in DOOR[:-1]].count(True) == 0
    assert not state.push(DOOR[-1], finish("length"))
    assert state.stop_reason == "asked"
    assert state.finish_reason == "stop"


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (SamplingParams(stop_token_ids=[40]), ""),
        (SamplingParams(stop_token_ids=[40], include_stop_str_in_output=True), "!"),
    ],
)
def test_a_stop_token_stays_in_the_ids_and_shows_no_text(
    params: SamplingParams, shown: str
) -> None:
    bang = TOKENIZER.encode("!")[0]
    state = make_state(params)
    state.push(DOOR[0])
    before = state.output().outputs[0].text
    state.push(bang, finish("stop", stop_reason=bang))
    answer = state.output().outputs[0]
    assert answer.token_ids == (DOOR[0], bang)
    assert answer.text == before + shown
    assert (answer.finish_reason, answer.stop_reason) == ("stop", bang)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, ""),
        ({"skip_special_tokens": False}, ""),
        ({"include_stop_str_in_output": True}, ""),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "</s>"),
    ],
)
def test_the_end_token_has_no_reason_and_shows_where_asked(
    options: dict[str, Any], shown: str
) -> None:
    state = make_state(SamplingParams(**options))
    state.push(EOS, finish("stop"))
    answer = state.output().outputs[0]
    assert (answer.text, answer.token_ids, answer.stop_reason) == (shown, (EOS,), None)


def test_an_end_token_in_mid_answer_is_shown_where_special_tokens_are() -> None:
    for skip, text in ((True, ""), (False, "</s>")):
        _, final, _ = run(
            make_state(SamplingParams(skip_special_tokens=skip, ignore_eos=True)), [EOS]
        )
        assert final.text == text


def test_an_unfinished_character_is_shown_at_the_end_only() -> None:
    by_byte = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    deltas, final, _ = run(make_state(), [by_byte[b"\xe4"], by_byte[b"\xbd"], by_byte[b"\xa0"]])
    assert [delta.text for delta in deltas] == ["", "", "你"]
    deltas, final, _ = run(make_state(), [by_byte[b"\xe4"], by_byte[b"\xbd"]])
    assert [delta.text for delta in deltas] == ["", "\ufffd"]
    assert final.text == "\ufffd"


def test_held_text_is_shown_when_a_request_is_aborted() -> None:
    state = make_state(SamplingParams(stop="x" + " opened"))
    for token_id in TOKENIZER.encode("x opene"):
        state.push(token_id)
    assert state.output(RequestOutputKind.DELTA).outputs[0].text == ""
    state.push(-1, finish("abort"))
    output = state.output(RequestOutputKind.DELTA)
    assert output.finished
    assert output.outputs[0].text == "x opene"
    assert output.outputs[0].finish_reason == "abort"


def test_an_error_brings_its_message() -> None:
    state = make_state(SamplingParams(logprobs=2))
    state.push(-1, finish("error", message="The step died."))
    output = state.output()
    assert (output.error, output.finished) == ("The step died.", True)
    assert output.outputs[0].finish_reason == "error"
    assert output.outputs[0].token_ids == ()


def test_an_error_is_told_even_where_the_last_text_is_a_stop_string() -> None:
    state = make_state(SamplingParams(stop="\ufffd"))
    by_byte = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    state.push(by_byte[b"\xe4"])
    state.push(-1, finish("error", message="The step died."))
    assert (state.finish_reason, state.error) == ("error", "The step died.")
    assert state.output().outputs[0].text == ""


def test_without_detokenizing_there_are_ids_only() -> None:
    for state in (make_state(SamplingParams(detokenize=False)), make_state(tokenizer=None)):
        deltas, final, _ = run(state, DOOR)
        assert final.text == ""
        assert final.token_ids == tuple(DOOR)
        assert all(delta.text == "" for delta in deltas)


def test_logprobs_name_the_drawn_token_first() -> None:
    a, b, c = DOOR[:3]
    state = make_state(SamplingParams(logprobs=2))
    rows = LogprobRows(
        sampled=np.array([-2.0, -0.5], np.float32),
        ranks=np.array([7, 1], np.int32),
        top_ids=np.array([[b, c, a], [b, c, a]], np.int32),
        top=np.array([[-0.25, -1.5, -9.0], [-0.5, -3.0, -9.0]], np.float32),
    )
    state.push(a, None, take_row(rows, 0, 2))
    state.push(b, finish(), take_row(rows, 1, 2))
    for kind in (RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA):
        answer = state.output(kind).outputs[0]
        assert answer.logprobs is not None
        first, second = answer.logprobs
        assert [(i, p.logprob, p.rank) for i, p in first.items()] == [
            (a, -2.0, 7),
            (b, -0.25, 1),
            (c, -1.5, 2),
        ]
        assert [(i, p.logprob, p.rank) for i, p in second.items()] == [(b, -0.5, 1), (c, -3.0, 2)]
        assert first[a].decoded_token == TOKENIZER.token_text(a)
        assert answer.cumulative_logprob == -2.5
    assert state.output(RequestOutputKind.DELTA).outputs[0].logprobs == ()


def test_the_token_that_completes_a_repetition_is_shown() -> None:
    state = make_state(SamplingParams(stop=["never there"]))
    state.push(DOOR[0])
    state.push(DOOR[0], Finished(0, "repetition", "repetition_detected"))
    answer = state.output().outputs[0]
    assert answer.text == 2 * TOKENIZER.token_text(DOOR[0])
    assert (answer.finish_reason, answer.stop_reason) == ("repetition", "repetition_detected")
    stopped = make_state(SamplingParams(stop=[TOKENIZER.token_text(DOOR[0])]))
    stopped.push(DOOR[0], Finished(0, "repetition", "repetition_detected"))
    assert stopped.finish_reason == "stop", "a stop string comes first"


def test_a_prompt_is_told_of_when_all_of_it_is_known() -> None:
    prompt = DOOR[:3]
    state = make_state(SamplingParams(prompt_logprobs=1), prompt=prompt)
    for start, top_id in enumerate((DOOR[3], -1), 1):
        assert state.output().prompt_logprobs is None
        rows = LogprobRows(
            sampled=np.array([-2.0], np.float32),
            ranks=np.array([3], np.int32),
            top_ids=np.array([[top_id, 9]], np.int32),
            top=np.array([[-0.5, -1.0]], np.float32),
        )
        state.push_prompt(PromptLogprobs("r", start, rows))
    for kind in map(RequestOutputKind, (0, 1, 1)):
        first, second, third = state.output(kind).prompt_logprobs or ()
        assert first is None and second is not None and third is not None
        assert [(i, p.logprob, p.rank) for i, p in second.items()] == [
            (prompt[1], -2.0, 3),
            (DOOR[3], -0.5, 1),
        ]
        assert second[DOOR[3]].decoded_token == TOKENIZER.token_text(DOOR[3])
        assert list(third) == [prompt[2]], "logits that are not finite have no likeliest token"
    with pytest.raises(AssertionError):
        state.push_prompt(PromptLogprobs("r", 1, rows))


def test_a_drawn_token_keeps_its_rank_among_equals() -> None:
    state = make_state(SamplingParams(logprobs=2))
    state.push(5, finish(), TokenLogprobs(-1.0, 1, (4, 5), (-1.0, -1.0)))
    answer = state.output().outputs[0]
    assert answer.logprobs is not None
    assert [(i, p.rank) for i, p in answer.logprobs[0].items()] == [(5, 1), (4, 1)]


def test_logprobs_of_zero_tell_of_the_drawn_token_only() -> None:
    state = make_state(SamplingParams(logprobs=0), tokenizer=None)
    state.push(5, finish(), TokenLogprobs(-1.0, 3, (), ()))
    answer = state.output().outputs[0]
    assert answer.logprobs is not None
    assert list(answer.logprobs[0]) == [5]
    assert answer.logprobs[0][5].decoded_token is None
