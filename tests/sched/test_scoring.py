"""Prompts of which log probabilities are told: each token once, whatever is cached or lost."""

from __future__ import annotations

import pytest
from quire.engine.params import SamplingParams
from quire.engine.plan import Scored
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

PROMPT = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
ASKS = SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=2)
PLAIN = SamplingParams(max_tokens=3, ignore_eos=True)
TOLD = list(enumerate(PROMPT))[1:]


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("budget", [1, 3, 4, 9, 10, 64])
def test_chunks_tell_every_token_but_the_first(budget: int, overlap: int) -> None:
    rig = Rig(make_limits(budget=budget, overlap=overlap))
    rig.add(make_request("a", PROMPT, params=ASKS, seed=1))
    rig.add(make_request("b", PROMPT, params=PLAIN, seed=2))
    rig.drain()
    assert rig.told == {"a": TOLD}
    assert len(rig.outputs["a"]) == len(rig.outputs["b"]) == 3


def test_one_that_asks_hits_nothing_and_is_hit() -> None:
    rig = Rig(make_limits())
    for seed, params in enumerate((PLAIN, ASKS, PLAIN), 1):
        rig.add(make_request(f"r{seed}", PROMPT, params=params, seed=seed))
        rig.step()
        rig.drain()
    assert rig.told == {"r2": TOLD}
    assert rig.scheduler.stats.prefix_hits == 9, "the last of them, all but one token"


def test_rows_of_one_step_share_nothing_with_one_that_asks() -> None:
    rig = Rig(make_limits())
    for seed, params in enumerate((ASKS, ASKS, PLAIN), 1):
        rig.add(make_request(f"r{seed}", PROMPT, params=params, seed=seed))
    plan = rig.step()
    assert plan.num_tokens.tolist() == [10, 10, 2], "the last reads what the first writes"
    assert plan.scored == (Scored(0, 1, 10, 2), Scored(1, 1, 10, 2))
    rig.drain()
    assert rig.told == {"r1": TOLD, "r2": TOLD}


def test_what_was_told_before_a_preemption_is_not_told_again() -> None:
    """Nor computed anew where it is still there."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=24, block_size=4, budget=5))
    long = SamplingParams(max_tokens=12, ignore_eos=True)
    rig.add(make_request("old", [0] * 4, params=long, seed=1))
    asks = SamplingParams(max_tokens=12, ignore_eos=True, prompt_logprobs=2)
    rig.add(make_request("asks", PROMPT, params=asks, seed=2))
    rig.drain()
    assert rig.scheduler.stats.num_preemptions > 0
    assert rig.scheduler.stats.resumed_hits > 0
    assert rig.told == {"asks": TOLD}


def test_what_was_told_may_be_hit_when_it_comes_back() -> None:
    rig = Rig(make_limits(budget=5))
    rig.add(make_request("asks", PROMPT, params=ASKS, seed=1))
    rig.step()
    sequence = rig.scheduler._alive["asks"]
    assert (sequence.num_told, sequence.most_hit, sequence.num_untold) == (6, 5, 4)
    rig.scheduler._preempt(sequence)
    rig.scheduler._refresh_rows()
    plan = rig.step()
    assert plan.starts.tolist() == [4], "a block; its second one was not yet full"
    assert plan.scored == (Scored(0, 6, 10, 2),)
    rig.drain()
    assert rig.told == {"asks": TOLD}


def test_a_dead_step_tells_nothing_and_the_others_go_on() -> None:
    rig = Rig(make_limits(budget=4, max_num_seqs=2))
    rig.add(make_request("asks", PROMPT, params=ASKS, seed=1))
    rig.step()
    plan = rig.launch()
    assert plan is not None and plan.scored == (Scored(0, 5, 9, 2),)
    rig.add(make_request("waits", PROMPT, params=ASKS, seed=2))
    rig.flying.clear()
    rig.scheduler.fail("it died")
    rig.device.memory.clear()
    rig.drain()
    assert rig.told == {"asks": TOLD[:4], "waits": TOLD}


def test_an_aborted_one_is_told_nothing_more() -> None:
    rig = Rig(make_limits(budget=4, overlap=2))
    rig.add(make_request("asks", PROMPT, params=ASKS, seed=1))
    rig.launch()
    rig.launch()
    rig.land()
    rig.scheduler.abort("asks")
    assert rig.land().prompts == ()
    rig.drain()
    assert rig.told == {"asks": TOLD[:4]}


def test_a_fork_that_asks_computes_what_it_tells() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("a", PROMPT, params=PLAIN, seed=1))
    rig.step()
    known = PROMPT + rig.outputs["a"]
    rig.add(make_request("b", known, params=ASKS, seed=2), parent="a")
    rig.add(make_request("c", known, params=PLAIN, seed=3), parent="a")
    plan = rig.step()
    assert dict(zip(plan.slots.tolist(), plan.num_tokens.tolist(), strict=True)) == {
        0: 1,
        1: 11,
        2: 1,
    }
    rig.drain()
    assert rig.told == {"b": list(enumerate(known))[1:]}


def test_prompts_of_one_token_tell_nothing() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("a", [3], params=ASKS, seed=1))
    assert rig.step().scored == ()
    rig.drain()
    assert rig.told == {}
