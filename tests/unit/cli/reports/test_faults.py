"""Exports that are wrong: each fault names its file, its place, its field and a remedy."""

import pytest

from penstock.cli.reports import together
from penstock.cli.reports.faults import FaultyReport
from support.exports import DAY, bucket, costs, page, usage

UNTIL = DAY.replace(day=3)
CSV = "date,model,amount_usd,currency\n"


def faults_of(*texts: str) -> list[tuple[str, str, str, str]]:
    def read() -> None:
        reports = [together.parse(f"file{n}", text) for n, text in enumerate(texts, 1)]
        together.rows(reports, since=DAY, until=UNTIL, price=lambda *_: None)

    with pytest.raises(FaultyReport) as caught:
        read()
    for fault in caught.value.faults:
        assert fault.remedy
        assert fault.text in str(caught.value)
    return [(f.file, f.place, f.field, f.problem) for f in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "place", "field", "problem"),
    [
        ("", "line 1", "", "the file is empty"),
        ("{", "line 1", "", "is no JSON"),
        ("[]", "$", "", "is an empty list"),
        ('{"object": "list"}', "$", "object", "is no page"),
        (page(), "$", "data", "has no bucket"),
        (page({"object": "bucket"}), "$.data[0]", "results", "is no bucket"),
        (page(bucket(0, {"object": "x"})), "$.data[0].results[0]", "object", "is 'x'"),
        (page(bucket(0, width=3601)), "$.data[0]", "end_time", "makes a bucket of 3601 s"),
        (page(bucket(0, start=7)), "$.data[0]", "start_time", "is no start of a 1d bucket"),
        (page(bucket(0, usage(model=None))), "$.data[0].results[0]", "model", "is missing"),
        (page(bucket(0, usage(output_tokens=-1))), "$.data[0].results[0]", "output_tokens",
         "is negative (-1)"),
        (page(bucket(0, usage(output_tokens=1.5))), "$.data[0].results[0]", "output_tokens",
         "no whole number"),
        (page(bucket(0, usage(input_tokens=10**16))), "$.data[0].results[0]", "input_tokens",
         "more than"),
        (page(bucket(0, usage(num_model_requests=True))), "$.data[0].results[0]",
         "num_model_requests", "no number"),
        (page(bucket(0, usage(input_cached_tokens=2000))), "$.data[0].results[0]",
         "input_cached_tokens", "more than all input tokens"),
        (page(bucket(0, usage(model="\ud800"))), "$.data[0].results[0]", "model", "printable"),
        (CSV + f"2026-11-01,{'m' * 257},1,usd\n", "line 2", "model", "at most 256"),
        (page(bucket(0, costs("-0.01"))), "$.data[0].results[0]", "amount.value", "is negative"),
        (page(bucket(0, costs("NaN"))), "$.data[0].results[0]", "amount.value", "no finite"),
        (page(bucket(0, costs("Infinity"))), "$.data[0].results[0]", "amount.value", "no finite"),
        (page(bucket(0, costs("1e999999999"))), "$.data[0].results[0]", "amount.value", "digits"),
        (page(bucket(0, costs("1e12"))), "$.data[0].results[0]", "amount.value", "more than"),
        (page(bucket(0, costs("1", "eur"))), "$.data[0].results[0]", "amount.currency",
         "is 'eur'"),
        (page(bucket(0, costs(line_item=None))), "$.data[0].results[0]", "line_item",
         "is missing"),
        (page(bucket(0, costs(), usage())), "$.data[0].results[1]", "object", "is not"),
        ("a,b\n1,2\n", "line 1", "", "names no known column"),
        ("model,amount\nx,1\n", "line 1", "start_time", "is missing"),
        ("date,amount\n", "line 1", "model", "is missing"),
        ("date,model\n", "line 1", "amount_value", "is missing"),
        ("date,model,amount,cost_usd\n", "line 1", "amount_value", "stands for two"),
        (CSV, "line 2", "", "a header and no line"),
        (CSV + "2026-11-01,gpt-4o,-1,usd\n", "line 2", "amount_value", "is negative"),
        (CSV + "2026-11-01,gpt-4o,nan,usd\n", "line 2", "amount_value", "no finite"),
        (CSV + "2026-11-01,gpt-4o,1,eur\n", "line 2", "amount_currency", "is 'eur'"),
        (CSV + "2026-11-01,,1,usd\n", "line 2", "model", "is missing"),
        (CSV + "2026-11-1,gpt-4o,1,usd\n", "line 2", "date", "no UTC day"),
        (CSV + "2026-11-01,gpt-4o,1\n", "line 2", "", "3 cells under 4"),
        (CSV + '2026-11-01,"gpt"4o,1,usd\n', "line 2", "", "is no CSV"),
        (CSV + "2026-11-02,m,1,usd\n2026-11-01,m,1,usd\n", "line 3", "start_time",
         "lies before"),
        ("start_time,end_time,model,amount\nx,1,m,1\n", "line 2", "start_time", "no number"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_place(text: str, place: str, field: str, problem: str) -> None:
    found = faults_of(text)[0]
    assert ("file1", place, field) == found[:3]
    assert problem in found[3]


def test_all_faults_of_a_file_are_told_together() -> None:
    text = page(bucket(0, costs("-1"), costs("NaN")), bucket(1, costs("1", "gbp")))
    assert 3 == len(faults_of(text))


def test_a_bucket_that_is_there_twice_names_both_places() -> None:
    one = page(bucket(0, costs()), bucket(1, costs()))
    (first, second) = faults_of(one, one)
    assert ("file2", "$.data[0]", "start_time") == first[:3]
    assert "file1, $.data[0]" in first[3]
    assert "$.data[1]" == second[1]


def test_buckets_that_overlap_are_refused() -> None:
    hour = page(bucket(0, costs(), start=3600, width=3600))
    (found,) = faults_of(page(bucket(0, costs()), bucket(1)), hour)
    assert "in part" in found[3]


def test_the_page_that_follows_must_be_there() -> None:
    (found,) = faults_of(page(bucket(0, costs()), bucket(1), next_page="AAAAAGdG"))
    assert ("file1", "$", "has_more") == found[:3]


def test_a_day_without_a_bucket_is_refused() -> None:
    (found,) = faults_of(page(bucket(0, costs())))
    assert ("file1", "2026-11-02", "") == found[:3]


def test_hours_must_cover_their_day() -> None:
    hours = [bucket(0, costs(), start=h * 3600, width=3600) for h in range(24) if h != 5]
    (found,) = faults_of(page(*hours, bucket(1)))
    assert "2026-11-01" == found[1]


def test_usage_of_a_model_without_a_price_is_refused() -> None:
    (found,) = faults_of(page(bucket(0, usage()), bucket(1)))
    assert "has no price" in found[3]


def test_many_faults_are_told_by_the_first() -> None:
    with pytest.raises(FaultyReport) as caught:
        together.parse("f", page(bucket(0, *[costs("-1")] * 50)))
    assert 21 == len(str(caught.value).splitlines())
    assert "30 more" in str(caught.value)
