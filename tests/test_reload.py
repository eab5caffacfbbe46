"""A reload gives what a first load would give, builds only what changed, and gives way to deliveries."""

import gc
import json
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.delivery import Answered
from service.states import States
from service.subscriptions import Reading, Snapshot, SubscriptionsError
from service.subscriptions.json_text import Outline
from service.subscriptions.json_text import read as read_json
from service.subscriptions.load import read
from service.subscriptions.malformed import Malformed
from service.subscriptions.memory import Memory
from service.subscriptions.pace import Pace
from tests.certificates import Authority
from tests.test_subscriptions import ENVIRON, SECRET, entry, rewrite, watching, write

Reload = Callable[..., Any]


def reading(path: Path, before: Memory | None = None, environ: Any = ENVIRON) -> Reading:
    return read(path, allow_http=False, environ=environ, before=before)


def snapshot_of(found: Reading) -> Snapshot:
    assert isinstance(found.result, Snapshot), found.result
    return found.result


def problems_of(found: Reading) -> str:
    assert isinstance(found.result, SubscriptionsError)
    return str(found.result)


class Knot:
    """In a cycle with itself: only the collector frees it."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.json"


def signed(name: str, file: str) -> Any:
    return entry(id=name, signing={"secrets": [{"file": file}]})


def test_an_edited_subscription_is_taken_up_and_the_others_are_the_same_objects(path: Path) -> None:
    write(path, entry(id="a"), entry(id="b"), entry(id="c"))
    first = reading(path)
    write(path, entry(id="new"), entry(id="a"), entry(id="b", timeout="1s"), entry(id="c"))
    a, b, c = snapshot_of(first)
    new, same_a, changed_b, same_c = snapshot_of(reading(path, first.memory))
    assert (new.id, changed_b.timeout, b.timeout) == ("new", 1.0, 15.0)
    assert same_a is a
    assert same_c is c


def test_a_reload_takes_no_garbage_from_the_collector_for_good(path: Path) -> None:
    write(path, entry(id="a"))
    knot = weakref.ref(Knot())
    snapshot_of(reading(path))
    write(path, entry(id="a", nonsense=1))
    problems_of(reading(path))
    gc.collect()
    assert knot() is None


def test_a_reload_of_very_many_leaves_no_garbage_of_others_for_good(path: Path) -> None:
    knots: list[weakref.ref[Knot]] = []

    def fail_meanwhile() -> None:
        knots.append(weakref.ref(Knot()))

    write(path, *(entry(id=f"s{number}") for number in range(10_000)))
    first = reading(path)
    try:
        snapshot_of(
            read(
                path,
                allow_http=False,
                environ=ENVIRON,
                before=first.memory,
                step=fail_meanwhile,
            )
        )
        gc.collect()
        assert len(knots) > 10_000
        assert not [knot for knot in knots if knot() is not None]
    finally:
        gc.unfreeze()


async def test_unchanged_subscriptions_keep_their_state_over_a_reload(path: Path) -> None:
    write(path, entry(id="a"), entry(id="b"))
    async with watching(path) as watched:
        states = States(1)
        sick = states.of(watched.watcher.current.get("a"))
        ticket = sick.targets[0].begin(0.0)
        sick.targets[0].end(ticket, Answered(500, 0.1, None, ""), 0.1, 0.5)
        write(path, entry(id="a"), entry(id="b", timeout="1s"))
        await watched.until(lambda: len(watched.loaded) == 2)
        snapshot, changes = watched.loaded[1]
        states.keep(snapshot.get, changes.removed)
        assert changes.changed == ("b",)
        assert states.of(snapshot.get("a")) is sick
        assert sick.targets[0].failures == 1


async def test_nothing_of_the_snapshot_before_is_kept_after_a_reload(path: Path) -> None:
    write(path, entry(id="a"))
    async with watching(path) as watched:
        old = weakref.ref(watched.watcher.current)
        watched.loaded.clear()
        rewrite(path, entry(id="b"))
        await watched.until(lambda: old() is None)


def test_changed_defaults_reach_every_subscription(path: Path) -> None:
    write(path, entry(id="a"), entry(id="b", timeout="2s"))
    first = reading(path)
    path.write_text(path.read_text()[:-1] + ', "defaults": {"timeout": "1s"}}')
    assert [s.timeout for s in snapshot_of(reading(path, first.memory))] == [1.0, 2.0]


def test_the_same_text_in_another_folder_means_other_files(tmp_path: Path) -> None:
    memory = None
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "secret").write_text(ENVIRON["SECRET" if name == "one" else "OTHER"])
        write(folder / "s.json", signed("a", "secret"))
        found = reading(folder / "s.json", memory)
        memory = found.memory
    assert list(snapshot_of(found)) == list(snapshot_of(reading(tmp_path / "two/s.json")))


def test_a_rotated_secret_reaches_those_that_use_it_and_no_others(path: Path) -> None:
    for name in ("one", "two"):
        (path.parent / name).write_text(SECRET)
    write(path, signed("a", "one"), signed("b", "two"))
    first = reading(path)
    (path.parent / "two").write_text(ENVIRON["OTHER"])
    second = reading(path, first.memory)
    a, b = snapshot_of(second)
    assert a is snapshot_of(first).get("a")
    assert b.signing.keys != a.signing.keys
    assert {looked.name for looked in second.looks} == {"s.json", "one", "two"}


def test_a_changed_variable_reaches_those_that_name_it(path: Path) -> None:
    write(path, entry(signing={"secrets": [{"env": "SECRET"}]}))
    first = reading(path)
    other = {"SECRET": ENVIRON["OTHER"]}
    assert list(snapshot_of(reading(path, first.memory, other))) == list(
        snapshot_of(reading(path, environ=other))
    )


def test_a_secret_that_is_gone_is_told_as_at_a_first_load(path: Path) -> None:
    secret = path.parent / "secret"
    secret.write_text(SECRET)
    write(path, entry(id="a"), signed("b", "secret"))
    first = reading(path)
    secret.unlink()
    told = problems_of(reading(path, first.memory))
    assert "subscriptions[1].signing.secrets[0].file: cannot be read: No such file" in told
    assert told == problems_of(reading(path))


def test_a_certificate_that_is_broken_is_told_as_at_a_first_load(path: Path) -> None:
    certificate = Path(Authority(path.parent).ca_file)
    write(path, entry(tls={"ca_file": "ca.pem"}))
    first = reading(path)
    (same,) = snapshot_of(reading(path, first.memory))
    assert same is snapshot_of(first).get("a")
    certificate.write_text("broken")
    told = problems_of(reading(path, first.memory))
    assert "tls.ca_file: must hold certificates in PEM form" in told
    assert told == problems_of(reading(path))


def test_a_warning_is_given_again_with_the_line_where_it_stands_now(path: Path) -> None:
    drained = entry(id="b", targets=[{"url": "https://b.example.com", "weight": 0}])
    path.write_text(json.dumps({"subscriptions": [entry(), drained]}, indent=1))
    first = reading(path)
    path.write_text(json.dumps({"subscriptions": [entry(), entry(id="c"), drained]}, indent=1))
    second = snapshot_of(reading(path, first.memory))
    assert second.warnings == snapshot_of(reading(path)).warnings
    assert second.warnings[0].field == "subscriptions[2].targets"


def test_an_id_that_stands_twice_is_refused_though_both_are_known(path: Path) -> None:
    write(path, entry(id="a"), entry(id="b"))
    first = reading(path)
    write(path, entry(id="a"), entry(id="b"), entry(id="a"))
    told = problems_of(reading(path, first.memory))
    assert "subscriptions[2].id: is already used by subscriptions[0]" in told


def test_a_refused_reading_keeps_the_memory_of_the_good_one(path: Path) -> None:
    write(path, entry(id="a"), entry(id="b"))
    first = reading(path)
    write(path, entry(id="a"), entry(id="b", timeout=5))
    refused = reading(path, first.memory)
    assert "subscriptions[1].timeout: must be a duration" in problems_of(refused)
    write(path, entry(id="a"), entry(id="c"))
    assert snapshot_of(reading(path, refused.memory)).get("a") is snapshot_of(first).get("a")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"subscriptions": [{"id": "b",\n"id": "b"}]}', "s.json:2: subscriptions[0]: 'id' stands twice"),
        ('{"subscriptions": [\n{"id": NaN}]}', "s.json: is not JSON: NaN"),
        ('{"subscriptions": [],\n"subscriptions": []}', "s.json:2: 'subscriptions' stands twice"),
        ('{"subscriptions": []}\n{}', "s.json:2: is not JSON: Extra data"),
        ('{"subscriptions": [\n{} {}]}', "s.json:2: is not JSON: Expecting ',' delimiter"),
    ],
)  # fmt: skip
def test_a_malformed_change_is_refused_with_its_line(path: Path, text: str, problem: str) -> None:
    write(path, entry(id="a"))
    first = reading(path)
    path.write_text(text)
    assert problem in problems_of(reading(path, first.memory))


# --- laws --------------------------------------------------------------------------------------------

GOOD = st.fixed_dictionaries(
    {"id": st.sampled_from("abcdef"), "event_types": st.sampled_from([["x"], ["y.#"]])},
    optional={
        "timeout": st.sampled_from(["1s", "2s"]),
        "description": st.sampled_from(["é", '"]}', "\\", "\u2028", "a\nb"]),
        "signing": st.sampled_from([{"secrets": [{"env": "OTHER"}]}, {"scheme": "none"}]),
        "headers": st.sampled_from([{"X-Team": None}, {"X-Other": "b"}]),
        "retry": st.sampled_from([{"jitter": 0}, {"schedule": ["1s"]}]),
    },
)
BAD = st.sampled_from([{}, 7, {"id": "a"}, entry(timeout=5), entry(tenant=1e400)])
TARGETS = [{"url": "https://a.example.com"}]
DEFAULTS: dict[str, Any] = {"signing": {"secrets": [{"env": "SECRET"}]}}


@st.composite
def documents(draw: Any) -> str:
    entries = draw(st.lists(GOOD, unique_by=lambda made: made["id"]))
    entries = [{"targets": [TARGETS[0] | draw(st.sampled_from([{}, {"weight": 0}]))], **made} for made in entries]  # fmt: skip
    entries += draw(st.lists(BAD, max_size=1)) if draw(st.integers(0, 4)) == 0 else []
    changed = draw(st.sampled_from([{}, {"headers": {"X-Team": "a"}}, {"retry": {"jitter": 0.5}}]))
    members = [("defaults", DEFAULTS | changed), ("subscriptions", entries)]
    written = dict(draw(st.permutations(members)))
    return json.dumps(written, indent=draw(st.sampled_from([None, 1])), ensure_ascii=False)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(texts=st.lists(documents(), min_size=2, max_size=5))
def test_a_reload_gives_what_a_first_load_gives(path: Path, texts: list[str]) -> None:
    memory = None
    for text in texts:
        path.write_text(text)
        again, anew = reading(path, memory), reading(path)
        memory = again.memory
        assert again.looks.keys() == anew.looks.keys()
        if isinstance(anew.result, SubscriptionsError):
            assert problems_of(again) == problems_of(anew)
        else:
            assert list(snapshot_of(again)) == list(anew.result)
            assert snapshot_of(again).warnings == anew.result.warnings


SIGNS = st.text(alphabet='{}[],:" \n\\0-e.tab\u00e9', max_size=4)


@settings(deadline=None, max_examples=500)
@given(text=documents(), place=st.integers(0, 400), cut=st.integers(0, 3), sign=SIGNS)
def test_an_outline_says_what_reading_the_whole_says(
    text: str, place: int, cut: int, sign: str
) -> None:
    text = text[:place] + sign + text[place + cut :]
    outline = Outline.of(text)
    if outline is None:
        with suppress(Malformed):
            whole: Any = read_json(text)
            assert not isinstance(whole, dict) or not isinstance(whole.get("subscriptions"), list)
        return
    try:
        entries = [outline.value(index) for index in range(len(outline))]
    except Malformed:
        with pytest.raises(Malformed):
            read_json(text)
    else:
        assert outline.outer | {"subscriptions": entries} == read_json(text)
        assert [json.loads(outline.written(index)) for index in range(len(entries))] == entries


def test_work_rests_when_a_while_has_gone_by_and_not_at_every_step() -> None:
    rests: list[float] = []
    pace = Pace(sleep=rests.append)
    steps = 0
    while len(rests) < 5:
        pace()
        steps += 1
    assert steps > 50
