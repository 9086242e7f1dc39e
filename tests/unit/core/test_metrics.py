import pytest

from penstock.core.metrics import LABEL_VALUES_MAX, Metrics, exposition


def test_an_attempt_is_counted_in_money_and_tokens():
    metrics = Metrics()
    metrics.attempt_ended(
        provider="openai", model="gpt-4o-mini", outcome="ok",
        cost_nano_usd=1_234_567, prompt_tokens=10, completion_tokens=5,
    )  # fmt: skip

    body, content_type = exposition(metrics.registry)

    text = body.decode()
    labels = 'model="gpt-4o-mini",provider="openai"'
    assert content_type.startswith("text/plain")
    assert f"penstock_cost_nano_usd_total{{{labels}}} 1.234567e+06" in text
    assert f'penstock_tokens_total{{kind="prompt",{labels}}} 10.0' in text


def test_requests_are_counted_by_outcome_provider_reason_and_cache():
    metrics = Metrics()
    for _ in range(3):
        metrics.request_ended(
            outcome="ok", provider="local", reason="local_first", cache="miss",
            duration_seconds=0.2, first_token_seconds=0.03,
        )  # fmt: skip
    labels = {"outcome": "ok", "provider": "local", "reason": "local_first", "cache": "miss"}
    read = metrics.registry.get_sample_value

    assert 3 == read("penstock_requests_total", labels)
    assert read("penstock_time_to_first_token_seconds_sum", {"provider": "local"}) == pytest.approx(
        0.09
    )


def test_a_label_has_a_bounded_number_of_values():
    metrics = Metrics()
    for number in range(LABEL_VALUES_MAX + 50):
        metrics.attempt_ended(provider="openai", model=f"m{number}", outcome="ok")

    labels = {"provider": "openai", "model": "other", "outcome": "ok"}
    assert 50 == metrics.registry.get_sample_value("penstock_attempts_total", labels)


def test_fail_open_is_counted_and_what_is_unsettled_is_read_when_asked():
    metrics = Metrics()
    unsettled = [1, 2]
    metrics.unsettled.set_function(lambda: len(unsettled))
    metrics.failed_open()
    read = metrics.registry.get_sample_value

    assert 1 == read("penstock_fail_open_total")
    assert 2 == read("penstock_ledger_unsettled")
    unsettled.clear()
    assert 0 == read("penstock_ledger_unsettled")


def test_what_somebody_else_counts_is_read_at_each_scrape():
    metrics, counted = Metrics(), [3]
    metrics.count_from("ledger_dropped", "Dropped.", lambda: counted[0])
    assert 3 == metrics.registry.get_sample_value("penstock_ledger_dropped_total")
    counted[0] = 5
    assert "penstock_ledger_dropped_total 5.0" in exposition(metrics.registry)[0].decode()
