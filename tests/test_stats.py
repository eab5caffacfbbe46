"""The table out of log lines: what is counted, what is skipped, and how exact it is."""

import json
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.commands import stats
from service.commands.histogram import Histogram
from service.commands.inlet import LINE_LIMIT, Inlet, Signals, Splitter
from service.commands.stats import Wish, print_stats
from service.commands.table import fitting, table
from service.commands.tally import MOST, OTHERS, Row, Statistics

ROOT = Path(__file__).parent.parent
LONG = "https://hooks.example.com/" + "x" * 200 + "/tail"


def line(message: str, **fields: Any) -> bytes:
    told = {
        "timestamp": "2030-01-31T12:00:00.000001Z",
        "level": "info",
        "message": message,
        "service": "webhook-dispatcher",
        "version": "0.1.0",
        **fields,
    }
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


def attempt(
    subscription: str = "billing",
    target: str = "https://a.example.com/h",
    milliseconds: float = 10.0,
    decision: str = "delivered",
    **fields: Any,
) -> bytes:
    ok = decision == "delivered"
    return line(
        "attempt.succeeded" if ok else "attempt.failed",
        subscription_id=subscription,
        target=target,
        duration_ms=milliseconds,
        decision=decision,
        **({} if ok else {"error": "status 503"}) | fields,
    )


def dead(subscription: str = "billing", reason: str = "exhausted") -> bytes:
    return line("delivery.dead_lettered", subscription_id=subscription, reason=reason)


def taken(*lines: bytes) -> Statistics:
    statistics = Statistics()
    statistics.take(lines)
    return statistics


def rows(*lines: bytes) -> dict[tuple[str, str | None], dict[str, Any]]:
    told = [row.told() for row in taken(*lines).rows()]
    return {(row["subscription_id"], row["target"]): row for row in told}


def run(text: bytes, wish: Wish) -> None:
    with tempfile.TemporaryFile() as log:
        log.write(text)
        log.seek(0)
        print_stats(log.fileno(), wish)


def printed(text: bytes, capsys: pytest.CaptureFixture[str], wish: Wish = Wish()) -> str:  # noqa: B008 - frozen
    run(text, wish)
    return capsys.readouterr().out


def test_attempts_are_counted_by_subscription_and_target() -> None:
    found = rows(
        attempt("a", "u1"),
        attempt("a", "u1", decision="failover"),
        attempt("a", "u2", decision="retry"),
        attempt("b", "u1"),
        line("target.ejected", subscription_id="a", target="u2", failures=5, ejected_for_s=30),
        dead("a"),
        dead("a", "gone"),
    )
    assert list(found) == [("a", None), ("a", "u1"), ("a", "u2"), ("b", None), ("b", "u1")]
    whole, first, second = found["a", None], found["a", "u1"], found["a", "u2"]
    assert (whole["attempts"], whole["succeeded"], whole["success_rate"]) == (3, 1, 0.333333)
    assert (whole["retries"], whole["failovers"], whole["ejections"]) == (1, 1, 1)
    assert (whole["dead_letters"], whole["dead_letter_reasons"]) == (2, {"exhausted": 1, "gone": 1})
    assert (first["attempts"], first["failovers"], first["retries"]) == (2, 1, 0)
    assert (second["attempts"], second["success_rate"], second["ejections"]) == (1, 0.0, 1)
    assert first["dead_letters"] is None
    assert found["b", None]["dead_letters"] == 0


def test_the_last_error_is_the_latest_by_time_and_not_by_place() -> None:
    found = rows(
        attempt(decision="retry", timestamp="2030-01-31T12:00:09.000000Z", error="status 500"),
        attempt(decision="retry", timestamp="2030-01-31T12:00:01.000000Z", error="timeout"),
        attempt(timestamp="2030-01-31T12:00:10.000000Z"),
    )
    for row in found.values():
        assert (row["last_error"], row["last_error_at"]) == (
            "status 500",
            "2030-01-31T12:00:09.000000Z",
        )


def test_a_subscription_that_only_has_dead_letters_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = rows(dead("removed", "subscription_removed"))["removed", None]
    assert (found["attempts"], found["success_rate"], found["p50_ms"]) == (0, None, None)
    assert "removed" in printed(dead("removed"), capsys)


@given(
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99])
)
def test_a_percentile_is_within_one_percent_of_the_true_one(
    durations: list[float], share: float
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    [found] = histogram.percentiles([share])
    true = sorted(durations)[-(-int(share * 100) * len(durations) // 100) - 1]
    assert found is not None
    assert abs(found - true) <= 0.01 * true


@pytest.mark.parametrize("odd", [0.0, -5.0, 1e300, float("inf")])
def test_durations_out_of_every_range_are_counted_in_the_outermost_bucket(odd: float) -> None:
    histogram = Histogram()
    histogram.add(odd)
    assert histogram.percentiles([0.5]) != [None]
    assert 1 in (histogram.buckets[0], histogram.buckets[-1])


def test_an_empty_histogram_has_no_percentile() -> None:
    assert Histogram().percentiles([0.5, 0.99]) == [None, None]


NOT_OURS = [
    b"hello\n",
    b"\n",
    b"[1, 2]\n",
    b'"attempt.failed"\n',
    b'["attempt.failed", {}]\n',
    b'{"message": "attempt.failed"}\n',
    attempt()[:80] + b"\n",
    attempt(service="another"),
    attempt().replace(b"10.0", b'"slow"'),
    attempt().replace(b"10.0", b"null"),
    attempt("other", timestamp="yesterday"),
    attempt("other", timestamp=7),
    line("attempt.failed", subscription_id="other", target="u", duration_ms=1, decision="retry"),
    line("attempt.succeeded", subscription_id="other", target="u", duration_ms=1),
    line("target.ejected", subscription_id="other"),
    line("log.gap", lines="many"),
    b'{"log": ' + json.dumps(attempt().decode()).encode() + b"}\n",
    b"\xff\xfe attempt. \x00\n",
    b"[" * 5000 + b'"attempt.\n',
    b'{"service": "webhook-dispatcher", "message": {"attempt.": 1}, "message": "attempt.failed"}\n',
]


@pytest.mark.parametrize("odd", NOT_OURS)
def test_what_is_no_json_or_not_ours_is_skipped_and_counted(odd: bytes) -> None:
    statistics = taken(odd, attempt())
    assert (statistics.used, statistics.other, statistics.skipped) == (1, 0, 1)
    [whole, _] = statistics.rows()
    assert whole.tally.attempts == 1


def test_other_lines_of_the_dispatcher_are_no_strangers() -> None:
    statistics = taken(
        line("service.started", pid=1), line("event.unmatched", event_type="attempt.x")
    )
    assert (statistics.used, statistics.other, statistics.skipped) == (0, 2, 0)


@pytest.mark.parametrize(
    "front",
    [
        b"dispatcher-1  | ",
        b"\x1b[36mdispatcher-1  | \x1b[0m",
        b"2030-01-31T12:00:00.1Z stdout F ",
        b"[pod/dispatcher-6b9f/dispatcher] ",
        b"[pod/dispatcher-6b9f/dispatcher] 2030-01-31T12:00:00.1Z ",
        b"dispatcher-6b9f dispatcher ",
    ],
)
def test_what_a_container_runtime_puts_in_front_does_not_matter(front: bytes) -> None:
    assert taken(front + attempt()).used == 1


def test_the_line_ends_of_a_terminal_do_not_matter() -> None:
    assert taken(*Splitter().feed(attempt().replace(b"\n", b"\r\n"))).used == 1


def test_json_written_with_spaces_is_read_as_well() -> None:
    assert taken(json.dumps(json.loads(attempt())).encode()).used == 1


def test_values_of_an_unexpected_kind_do_not_break_the_table() -> None:
    statistics = taken(attempt(subscription=7), attempt("a", target=None), dead(["x"]), attempt())  # type: ignore[arg-type]
    assert list(table(list(statistics.rows()), 120))


def test_the_table_is_aligned_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        attempt("s" * 64, LONG, 123_456.7),
        attempt("b", LONG, decision="retry", error="e" * 500),
    ]
    shown = printed(b"".join(lines * 3), capsys)
    head, *body = shown.splitlines()
    assert max(map(len, [head, *body])) <= stats.WIDTH
    assert "..." in shown
    assert "/tail" in shown
    ends = [head.index(name) + len(name) for name in ("attempts", "p99 ms")]
    for row in body[:2]:
        for end in ends:
            assert row[end - 1].isdigit()
            assert row[end : end + 1] == " "


def test_100_percent_is_said_only_where_nothing_failed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(attempt() * 99_999 + attempt(decision="retry"), capsys)
    assert "99.99%" in shown
    assert "100.00%" not in shown


def test_control_characters_in_a_log_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = printed(attempt("a\x1b[31m", "u\n\r\x07", decision="retry", error="\x1b]0;x"), capsys)
    assert shown.replace("\n", "").isprintable()


def test_control_characters_in_a_log_do_not_reach_the_terminal_as_json_either(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = "\x1b[31m \x7f \x9b2J \u202e"
    shown = printed(attempt(decision="retry", error=told), capsys, Wish(as_json=True))
    assert shown.replace("\n", "").isprintable()
    assert [json.loads(one)["last_error"] for one in shown.splitlines()] == [told, told]


def test_what_the_encoding_lacks_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "stats", "--plot"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        input=attempt("a", "https://a.example.com/h", decision="retry", error="geht nicht: \u00fc"),
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert b"geht nicht: ?" in done.stdout
    assert b"|#" in done.stdout


def test_json_gives_one_object_a_line_and_the_counts_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(attempt() + dead() + b"nonsense\n", Wish(as_json=True))
    captured = capsys.readouterr()
    whole, target = map(json.loads, captured.out.splitlines())
    assert (whole["target"], whole["dead_letters"]) == (None, 1)
    assert target["target"] == "https://a.example.com/h"
    assert whole["as_of"] == target["as_of"] == "2030-01-31T12:00:00.000001Z"
    assert "3 lines: 2 counted, 0 of other kinds, 1 skipped" in captured.err


def test_no_input_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(b"", capsys).startswith("No lines")
    assert printed(b"hello\n", capsys).startswith("No attempts")


def test_a_line_that_is_too_long_is_skipped_and_not_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = attempt("long", decision="retry", error="x" * LINE_LIMIT)
    shown = printed(long + attempt() + long.rstrip(), capsys)
    assert "3 lines: 1 counted, 0 of other kinds, 2 skipped" in shown
    splitter = Splitter()
    for _ in range(100):
        assert splitter.feed(b"x" * (LINE_LIMIT // 10)) == []
        assert sum(map(len, splitter._parts)) <= LINE_LIMIT
    assert splitter.feed(b"x\n" + attempt()) == [b"", attempt().rstrip()]


def test_a_last_line_without_a_newline_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 lines: 1 counted" in printed(attempt().rstrip(), capsys)


def test_memory_does_not_grow_with_the_number_of_lines() -> None:
    chance = random.Random(1)
    statistics = Statistics()

    def take(count: int) -> None:
        for _ in range(count):
            statistics.take([attempt(milliseconds=chance.lognormvariate(3, 3))])

    take(3_000)
    tracemalloc.start()
    take(3_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "service", "stats"],
        cwd=ROOT,
        input=attempt() * 10,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_command_reads_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "stats", "--json"],
        cwd=ROOT,
        input=attempt("one") + attempt("two"),
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert [json.loads(one)["subscription_id"] for one in done.stdout.splitlines()] == [
        *("one", "one"),
        *("two", "two"),
    ]


def test_lines_that_the_dispatcher_could_not_write_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = printed(attempt() + line("log.gap", lines=1234, error="no room"), capsys)
    assert "2 lines: 2 counted" in shown
    assert "1,234 lines were never written" in shown


def test_beyond_the_most_targets_all_further_ones_share_a_row() -> None:
    known = [attempt("s", f"u{number}") for number in range(MOST)]
    further = [attempt(f"t{number}", "u") for number in range(100)]
    graves = [dead(f"d{number}") for number in range(MOST + 50)]
    found = rows(*known, *further, *known[:1], *graves, dead("d0"))
    assert len(found) == MOST + 1 + 2 + MOST
    assert found["s", "u0"]["attempts"] == 2
    assert found[OTHERS, OTHERS]["attempts"] == 100
    assert found[OTHERS, None]["dead_letters"] == 50
    assert found["d0", None]["dead_letters"] == 2


def test_what_lines_name_is_kept_in_part_only() -> None:
    statistics = taken(
        *(attempt(decision="retry", error="e" * 100_000) for _ in range(3)),
        *(attempt("s" * 100_000, "u" * 100_000) for _ in range(3)),
        *(dead("s", f"{number}" + "r" * 100_000) for number in range(1000)),
    )
    assert statistics.used == 1006
    told = [row.told() for row in statistics.rows()]
    assert len(json.dumps(told)) < 15_000
    assert [row["attempts"] for row in told] == [3, 3, 0, 3, 3]
    assert told[2]["dead_letters"] == 1000


def test_a_table_of_80_columns_leaves_out_failovers_and_shortens_the_names() -> None:
    listed = list(taken(attempt("s" * 64, LONG, decision="retry", error="e" * 90)).rows())
    head, *body = table(listed, 79)
    assert "failovers" not in head
    assert head.endswith("retries ejected dead")
    assert max(map(len, [head, *body])) <= 79
    assert body[0].split()[1:] == ["1", "0.00%", *["10.1"] * 3, "1", "0", "0"]


def test_a_window_too_low_leaves_out_targets_first_and_says_so() -> None:
    statistics = taken(*(attempt(f"s{number}", f"u{n}") for number in range(5) for n in range(3)))
    listed = list(statistics.rows())
    assert len(fitting(listed, 120, 21)) == 21
    low = fitting(listed, 120, 20)
    assert [one.split()[0] for one in low[1:6]] == ["s0", "s1", "s2", "s3", "s4"]
    assert low[6].startswith("(15 rows more")
    lower = fitting(listed, 120, 4)
    assert [one.split()[0] for one in lower[1:]] == ["s0", "s1", "(18"]


def test_a_window_too_low_for_all_subscriptions_shows_those_where_the_most_went_wrong() -> None:
    lines = [attempt(f"s{number}", "u") for number in range(9)]
    lines += [attempt("s5", "u", decision="retry")] * 2
    lines.append(line("target.ejected", subscription_id="s8", target="u"))
    lines.append(dead("s2"))
    shown = fitting(list(taken(*lines).rows()), 120, 5)
    assert [one.split()[0] for one in shown[1:]] == ["s2", "s5", "s8", "(15"]


@given(st.lists(st.integers(0, 60), max_size=40), st.data())
def test_blocks_may_be_cut_anywhere(lengths: list[int], data: st.DataObject) -> None:
    whole = b"\n".join(b"x" * length for length in lengths)
    splitter, found, rest = Splitter(), [], whole
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        found += splitter.feed(rest[:cut])
        rest = rest[cut:]
    assert found + splitter.end() == whole.removesuffix(b"\n").split(b"\n")[: len(whole) or 0]


def test_a_table_of_nothing_but_ejections_is_fine() -> None:
    ejected = line("target.ejected", subscription_id="a", target="u")
    told: list[Row] = list(taken(ejected).rows())
    assert [row.tally.ejections for row in told] == [1, 1]
    assert list(table(told, 120))


def test_an_error_that_is_nested_too_deep_to_be_written_is_skipped() -> None:
    statistics = Statistics()
    deep = attempt(decision="retry", error="deep").replace(b'"deep"', b"[" * 1010 + b"]" * 1010)
    statistics.take([deep, attempt()])
    assert (statistics.used, statistics.skipped) == (1, 1)


def test_any_interval_can_be_waited_for() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    with Signals() as signals:
        assert Inlet(reader, signals).read(86_400.0 * 365) == b"x"
    os.close(reader)
    os.close(writer)
