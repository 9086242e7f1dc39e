import sqlite3
import stat
import threading

import pytest

from penstock.core import semconv
from penstock.traces.reader import latest, load
from penstock.traces.store import FILE, SPANS_PER_TRACE_MAX, Store, StoreError
from support.spans import request_span, span


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "traces"


def filled(folder, traces, keep=1000, **settings):
    store = Store(folder, keep, **settings)
    for number in range(1, traces + 1):
        store.add([span(number, 2, 1), request_span(number, 1, f"req_{number}")])
    return store


def test_a_trace_is_found_by_trace_id_and_by_request_id(folder):
    store = filled(folder, 3)

    by_request = load(folder, "req_2")
    assert [1, 2] == [int(s.span_id[8:], 16) for s in by_request.spans]
    assert by_request == load(folder, f"{2:032x}") == load(folder, f" {2:032X} ")
    assert load(folder, "req_9") is None
    assert load(folder, f"{9:032x}") is None
    store.close()
    assert by_request == load(folder, "req_2")


def test_spans_of_one_trace_may_come_in_several_messages_and_twice(folder):
    store = Store(folder, 10)
    store.add([span(1, 2, 1)])
    store.add([request_span(1, 1, "req_1")])
    store.add([span(1, 2, 1)])
    store.close()

    assert 2 == len(load(folder, "req_1").spans)


def test_the_list_tells_how_each_request_went(folder):
    told = {
        semconv.REQUEST_MODEL: "auto",
        semconv.PROVIDER: "local",
        semconv.RESPONSE_MODEL: "small",
        semconv.REASON: "local_first",
        semconv.CACHE: "miss",
        semconv.COST_NANO_USD: 2**60,
    }
    refused = {semconv.REQUEST_MODEL: "gpt", semconv.ERROR_TYPE: "BUDGET_EXCEEDED"}
    store = filled(folder, 1)
    store.add([request_span(2, 1, "req_a", attributes=told), span(2, 2, 1)])
    store.add([request_span(2, 3, "req_b", attributes=refused, failed=True)])
    store.close()

    b, a = latest(folder, 2)
    assert ("req_a", "auto", "local/small", "local_first", "miss", 2**60, "ok", 0.5) == (
        a.request_id, a.model, a.answered_by, a.reason, a.cache, a.cost_nano_usd, a.outcome,
        a.duration_ms,
    )  # fmt: skip
    assert ("req_b", "gpt", "", 0, "BUDGET_EXCEEDED") == (
        b.request_id, b.model, b.answered_by, b.cost_nano_usd, b.outcome
    )  # fmt: skip


def test_an_answer_that_ended_at_a_budget_is_told_so(folder):
    cut = {semconv.FINISH_REASONS: [semconv.BUDGET], semconv.PROVIDER: "local"}
    whole = {semconv.FINISH_REASONS: ["stop"], semconv.PROVIDER: "local"}
    store = Store(folder, 10)
    store.add([request_span(1, 1, "req_cut", attributes=cut)])
    store.add([request_span(2, 1, "req_whole", attributes=whole)])
    store.close()

    assert {"req_cut": "budget", "req_whole": "ok"} == {
        e.request_id: e.outcome for e in latest(folder)
    }


def test_only_the_last_traces_are_kept(folder):
    filled(folder, 30, keep=10).close()

    assert [f"req_{n}" for n in range(30, 20, -1)] == [e.request_id for e in latest(folder, 100)]
    assert load(folder, "req_20") is None
    assert load(folder, f"{20:032x}") is None
    with sqlite3.connect(folder / FILE) as db:
        rows = [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("spans", "traces")]
    db.close()
    assert [20, 10] == rows


def test_a_trace_id_that_a_client_reuses_forever_is_bounded(folder):
    store = Store(folder, 10)
    store.add([span(1, n, 1) for n in range(2, SPANS_PER_TRACE_MAX + 100)])
    store.close()

    assert SPANS_PER_TRACE_MAX == len(load(folder, f"{1:032x}").spans)


def test_the_file_is_bounded_and_old_traces_make_room(folder):
    bytes_max = 1024 * 1024
    store = Store(folder, 100_000, bytes_max=bytes_max)
    for number in range(1, 400):
        store.add([request_span(number, 1, f"req_{number}", attributes={"text": "x" * 10_000})])
    store.close()

    assert (folder / FILE).stat().st_size <= bytes_max
    assert load(folder, "req_399") is not None
    assert load(folder, "req_1") is None


def test_a_client_trace_with_many_requests_shows_only_the_one_asked_for(folder):
    store = Store(folder, 10)
    store.add(
        [
            request_span(1, 1, "req_1"), span(1, 2, 1), span(1, 3, 2),
            request_span(1, 11, "req_11"), span(1, 12, 11),
        ]
    )  # fmt: skip
    store.close()

    assert ["span 11", "span 12"] == [s.name for s in load(folder, "req_11").spans]
    assert 5 == len(load(folder, f"{1:032x}").spans)


def test_it_is_its_owners_alone(folder):
    filled(folder, 1).close()

    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert 0o600 == stat.S_IMODE((folder / FILE).stat().st_mode)


@pytest.mark.parametrize("content", [b"no database at all" * 500, b""])
def test_a_damaged_file_is_made_anew(folder, content):
    folder.mkdir()
    (folder / FILE).write_bytes(content)
    filled(folder, 1).close()

    assert load(folder, "req_1") is not None


def test_a_file_of_another_version_is_made_anew(folder):
    filled(folder, 1).close()
    with sqlite3.connect(folder / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    filled(folder, 0).close()

    assert load(folder, "req_1") is None


def test_a_folder_that_cannot_be_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="cannot keep traces in"):
        Store(tmp_path / "file" / "traces", 10)


def test_reading_where_nothing_is_kept_says_what_to_do(folder):
    with pytest.raises(StoreError, match="make up"):
        load(folder, "req_1")


def test_load_waits_for_a_trace_that_is_still_to_come(folder):
    store = filled(folder, 0)
    slept = threading.Event()

    def sleep(_seconds):
        assert not slept.is_set(), "it was there after the first wait"
        slept.set()
        store.add([request_span(1, 1, "req_1")])

    assert load(folder, "req_1", wait_seconds=60, sleep=sleep) is not None
    assert slept.is_set()
    store.close()


def test_load_reads_a_young_trace_again_when_all_spans_can_be_there(folder):
    store = Store(folder, 10)
    store.add([request_span(1, 1, "req_1", end_unix_ns=1_000_000_000)])
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        store.add([span(1, 2, 1)])

    trace = load(folder, "req_1", wait_seconds=5, sleep=sleep, now_unix_ns=lambda: 1_250_000_000)

    assert [0.75] == slept
    assert 2 == len(trace.spans)
    store.close()
