"""Attempts over time: what is kept, and how it is drawn."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from service.commands.plot import ASCII, BLOCKS, panel_height, plot
from service.commands.series import SLOTS, Series
from service.commands.tally import Statistics
from tests.test_stats import attempt

START = 1_893_456_000
"""2030-01-01T00:00:00Z."""

ATTEMPTS = st.lists(
    st.tuples(st.integers(-(2**31), 2**35), st.floats(0.1, 1e5), st.booleans()),
    min_size=1,
    max_size=80,
)


def series(*attempts: tuple[int, float, bool]) -> Series:
    made = Series()
    for second, milliseconds, succeeded in attempts:
        made.add(second, milliseconds, succeeded=succeeded)
    return made


def drawn(made: Series, width: int = 60, height: int = 2, marks: str = BLOCKS) -> list[str]:
    return plot(made, width, height, marks)


@given(ATTEMPTS, st.integers(2, 200))
def test_every_attempt_is_in_a_column_and_columns_and_slots_are_bounded(
    attempts: list[tuple[int, float, bool]], room: int
) -> None:
    made = series(*attempts)
    columns = made.columns(room)
    assert columns is not None
    assert len(made._slots) <= SLOTS
    assert len(columns.slots) <= room
    kept = [slot for slot in columns.slots if slot is not None]
    assert sum(slot.attempts for slot in kept) == len(attempts)
    assert sum(slot.failed for slot in kept) == sum(not ok for _, _, ok in attempts)
    assert sum(sum(slot.durations.buckets) for slot in kept) == len(attempts)
    seconds = [second for second, _, _ in attempts]
    assert (columns.first, columns.last) == (min(seconds), max(seconds))


@given(ATTEMPTS, st.randoms(use_true_random=False))
def test_the_order_of_the_lines_does_not_matter(
    attempts: list[tuple[int, float, bool]], chance: random.Random
) -> None:
    mixed = attempts[:]
    chance.shuffle(mixed)
    assert drawn(series(*attempts)) == drawn(series(*mixed))


def test_an_attempt_is_drawn_where_it_happened() -> None:
    made = series(*((START + second, 10.0, True) for second in (0, 0, 0, 0, 1, 1, 4)))
    attempts, *_ = drawn(made, height=1)
    assert attempts == "attempts/s      4 |█▄  ▂"


def test_a_day_is_drawn_within_the_width_at_its_mean_rate() -> None:
    made = series(*((START + second, 10.0, True) for second in range(0, 86_400, 6)))
    assert made.seconds == 256
    top, *_, axis, told = drawn(made, width=80)
    assert top.startswith("attempts/s   0.17 |")
    assert 30 < len(axis) <= 80
    assert told == "2030-01-01 00:00:00 to 2030-01-01 23:59:54 UTC; one column: 25.6 min"


def test_one_failure_among_very_many_is_seen() -> None:
    attempts = [(START, 10.0, True)] * 5000 + [(START, 10.0, False)] * 5000
    _, failed, *_ = drawn(series(*attempts, (START + 1, 10.0, False)), height=1)
    assert failed.endswith("|█▁")


def test_percentiles_are_those_of_their_time() -> None:
    quick = [(START, 10.0, True)] * 98 + [(START, 1000.0, True)] * 2
    slow = [(START + 1, 500.0, True)] * 100
    *_, p50, p99, _, _ = drawn(series(*quick, *slow), height=1)
    assert p50.startswith("p50 ms")
    assert p50.endswith("|▁█")
    assert p99.endswith("|█▅")


def test_a_panel_is_as_high_as_asked_for_and_fits_the_width() -> None:
    made = series(*((START + second, float(second + 1), second % 7 > 0) for second in range(300)))
    for height in (1, 3, 5):
        lines = drawn(made, width=71, height=height)
        assert len(lines) == 4 * height + 2
        assert max(map(len, lines)) <= 71


def test_ascii_stands_for_blocks() -> None:
    lines = drawn(
        series((START, 1.0, True), (START, 1.0, True), (START + 1, 1.0, False)), marks=ASCII
    )
    assert all(line.isascii() for line in lines)
    assert lines[0].endswith("|#")
    assert lines[1].endswith("|##")


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(Series()) == []


def test_plot_and_table_share_the_window() -> None:
    assert [panel_height(lines) for lines in (5, 24, 50, 200)] == [1, 2, 5, 5]


def test_memory_does_not_grow_with_the_time_that_lines_tell_of() -> None:
    statistics = Statistics(over_time=True)

    def take(day: int) -> None:
        for minute in range(24 * 60):
            at = f"2030-01-{day:02}T{minute // 60:02}:{minute % 60:02}:00.000000Z"
            statistics.take([attempt(timestamp=at)])

    for day in range(1, 5):
        take(day)
    tracemalloc.start()
    for day in range(5, 9):
        take(day)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert statistics.used == 8 * 24 * 60
    # At most what all slots together need.
    assert grown < SLOTS * 12_000
