"""Metrics: the numbers that go in come out, in Prometheus' format and under vLLM's names."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from quire.engine.metrics import MAX_TENANTS, OTHERS, EngineMetrics, Histogram

NAMES = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    *("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens"),
    *("generation_tokens", "request_success", "time_to_first_token_seconds"),
    *("inter_token_latency_seconds", "e2e_request_latency_seconds", "iteration_tokens_total"),
    *("request_prompt_tokens", "request_generation_tokens", "request_queue_time_seconds"),
    *("tenant_requests", "tenant_prompt_tokens", "tenant_generation_tokens"),
    *("spec_decode_num_drafts", "spec_decode_num_draft_tokens"),
    *("spec_decode_num_accepted_tokens_per_pos", "spec_decode_mean_accepted_length"),
    "spec_decode_saved_seconds",
    "spec_decode_num_accepted_tokens",
}


def samples(metrics: EngineMetrics) -> dict[str, float]:
    return {
        sample.name.removeprefix("quire:") + sample.labels.get("finished_reason", ""): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_all_names_are_there() -> None:
    text = EngineMetrics("a model").render().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert families == {f"quire:{name}" for name in NAMES}
    assert 'model_name="a model"' in text


def test_numbers_come_out() -> None:
    metrics = EngineMetrics("m")
    metrics.observe_tokens([0.5, 0.25], [1.0, 1.0, 1.5], 2.0)
    metrics.observe_finished("stop", prompt_tokens=7, output_tokens=3, e2e_seconds=2.0)
    metrics.observe_finished("error", prompt_tokens=1, output_tokens=0, e2e_seconds=1.0)
    metrics.observe_step(17)
    metrics.set_state(running=3, waiting=4, kv_usage=0.25)
    metrics.add_prefix(100, 60)
    metrics.add_prefix(10, 0)
    metrics.add_preemptions(2)
    given = samples(metrics)
    expected = {
        "time_to_first_token_seconds_count": 2,
        "time_to_first_token_seconds_sum": 0.75,
        "inter_token_latency_seconds_count": 3,
        "inter_token_latency_seconds_sum": 2.5,
        "generation_tokens_total": 5,
        "request_success_totalstop": 1,
        "request_success_totalerror": 1,
        "request_success_totallength": 0,
        "prompt_tokens_total": 8,
        "request_prompt_tokens_sum": 8,
        "request_generation_tokens_sum": 3,
        "e2e_request_latency_seconds_sum": 3.0,
        "iteration_tokens_total_sum": 17,
        "num_requests_running": 3,
        "num_requests_waiting": 4,
        "kv_cache_usage_perc": 0.25,
        "prefix_cache_queries_total": 110,
        "prefix_cache_hits_total": 60,
        "num_preemptions_total": 2,
    }
    assert {name: given[name] for name in expected} == expected


def test_engines_do_not_share_numbers() -> None:
    one, other = EngineMetrics("one"), EngineMetrics("other")
    one.add_preemptions(1)
    assert samples(one)["num_preemptions_total"] == 1
    assert samples(other)["num_preemptions_total"] == 0


def by_tenant(metrics: EngineMetrics, name: str) -> dict[str, float]:
    return {
        sample.labels["tenant"]: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == f"quire:{name}"
    }


def test_tenants_are_told_apart_and_their_number_is_bounded() -> None:
    metrics = EngineMetrics("m")
    for number in range(MAX_TENANTS + 50):
        metrics.observe_finished(
            "stop",
            tenant=f"t{number}",
            queue_seconds=0.5 if number else None,
            prompt_tokens=3,
            output_tokens=2,
            e2e_seconds=1.0,
        )
    found = by_tenant(metrics, "tenant_prompt_tokens_total")
    assert len(found) == MAX_TENANTS + 1
    assert (found["t1"], found[OTHERS]) == (3, 150)
    assert by_tenant(metrics, "tenant_generation_tokens_total")[OTHERS] == 100
    waits = by_tenant(metrics, "request_queue_time_seconds_sum")
    assert (waits["t0"], waits["t1"], waits[OTHERS]) == (0.0, 0.5, 25.0)


@given(st.lists(st.floats(0, 20) | st.sampled_from([1.0, 2.5, 5.0])))
def test_buckets_count_what_is_at_most_their_bound(values: list[float]) -> None:
    histogram = Histogram((1.0, 2.5, 5.0))
    for value in values:
        histogram.observe(value)
    expected = [(str(bound), sum(one <= bound for one in values)) for bound in (1.0, 2.5, 5.0)]
    assert histogram.buckets() == [*expected, ("+Inf", len(values))]


def test_counting_does_not_import_prometheus() -> None:
    code = (
        "import sys; from quire.engine.metrics import EngineMetrics;"
        "EngineMetrics('m').observe_tokens([1.0], [1.0], 2.0);"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
