"""Rules, dashboard, collectors and runbook fit the lines and metrics that a real run writes.

Rules and panels are run by Loki's own engine, the parse stage by Promtail's own stages and by VRL itself,
Prometheus' rules by promtool.  Where one of them cannot be had, its tests are skipped and say why; the
rest, above all that no name is said that the catalogue does not have, needs none of them.
"""

import asyncio
import collections
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from service.catalogue import CATALOGUE
from service.cli import cli
from tests.monitoring import alloy, files, loki, scenarios
from tests.monitoring.loki import NANOS, Entry
from tests.monitoring.run import MADE_UP, Line, Run, real_run
from tests.monitoring.scenarios import BEGIN, MINUTES, Fires, Scenario

LOKI_ALERTS = files.rules(files.LOKI_ALERTS)
RECORDINGS = files.rules(files.LOKI_RECORDINGS)
PROMETHEUS_ALERTS = files.rules(files.PROMETHEUS.read_text())
PANELS = files.panels()
QUERIES = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in LOKI_ALERTS),
    *(pytest.param(rule["expr"], id=rule["record"]) for rule in RECORDINGS),
    *(pytest.param(query, id=title) for title, query, _ in PANELS),
]
PIPELINE = alloy.pipeline_stages(
    next(block for block in alloy.parse(files.ALLOY) if block.name == "loki.process")
)
STEP = 120
NO_JSON = "Fatal Python error: something no dispatcher should ever say"


@pytest.fixture(scope="session")
def run(broker, leftovers, tmp_path_factory) -> Run:
    return asyncio.run(real_run(broker.url, tmp_path_factory.mktemp("monitoring"), leftovers))


@pytest.fixture(scope="session")
def engine() -> None:
    try:
        loki.engine()
    except loki.NotToBeHadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian's package: prometheus)")
    return found


def as_read(line: Line) -> Entry:
    """Return a line as a collector gets it: no time but the reader's, the pod's labels and some more."""
    labels = {"namespace": "webhooks", "pod": line.pod, "job": "pods", "instance": "10.0.0.1"}
    return Entry(NANOS, line.raw, labels)


@pytest.fixture(scope="session")
def collected(run, engine) -> list[Entry]:
    return loki.through(PIPELINE, [as_read(line) for line in run.lines])


# Nothing is said that the catalogue does not have, and the catalogue has nothing that is never said


def test_a_real_run_has_every_line_of_the_catalogue(run):
    assert {line.message for line in run.lines} | MADE_UP == {event.name for event in CATALOGUE}


def test_a_real_run_has_every_line_that_alerts_look_for(run):
    wanted = {
        message
        for rule in LOKI_ALERTS
        for part in files.selections(rule["expr"])
        for message in part.messages
    }
    assert wanted <= {line.message for line in run.lines} | MADE_UP


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_reads_what_the_catalogue_says_there_is(query):
    for part in files.selections(query):
        assert part.labels.keys() <= files.STREAM_LABELS
        schemas = [files.SCHEMAS[name]["properties"] for name in part.messages]
        for field in part.fields.values():
            assert any(field in schema for schema in schemas), (field, part.messages)
        for name, how, value in part.matchers:
            field = part.fields.get(name, name)
            for wanted in value.split("|") if how in {"=~", "!~"} else [value]:
                assert _is_possible(schemas, field, wanted), (field, wanted)


def _is_possible(schemas: list[Any], field: str, value: str) -> bool:
    if field == "__error__" or value.startswith("$"):
        return True
    for schema in schemas:
        match schema.get(field):
            case {"enum": allowed} if value not in allowed:
                continue
            case {"type": "boolean"} if value not in {"true", "false"}:
                continue
            case None:
                continue
            case _:
                return True
    return False


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_looks_for_lines_where_their_level_puts_them(query):
    for part in files.selections(query):
        if "level" not in part.labels:
            continue
        looked = set(part.labels["level"][1].split("|"))
        levels = {files.SCHEMAS[name]["properties"]["level"]["enum"][0] for name in part.messages}
        assert levels <= looked
        assert looked <= {"debug", "info", "warning", "error"}


def test_collectors_read_what_every_line_has_and_label_what_is_few():
    common = files.SCHEMAS["attempt.succeeded"]["properties"].keys()
    stages = {next(iter(stage)): stage for stage in yaml.safe_load(PIPELINE)}
    assert stages["json"]["json"]["expressions"].keys() <= common
    assert set(stages["labelallow"]["labelallow"]) == files.STREAM_LABELS
    assert set(stages["structured_metadata"]["structured_metadata"]) == files.METADATA
    source = files.VECTOR["transforms"]["parsed"]["source"]
    assert set(re.findall(r"\bline\.(\w+)", source)) <= common
    assert files.VECTOR["sinks"]["loki"]["labels"].keys() == files.STREAM_LABELS


def test_every_component_that_a_collector_names_is_there():
    blocks = alloy.parse(files.ALLOY)
    components = {f"{block.name}.{block.label}" for block in blocks}
    named = {name for block in blocks for value in block.all_values() for name in _names(value)}
    assert named
    assert all(any(name.startswith(f"{one}.") for one in components) for name in named)
    transforms, sinks = files.VECTOR["transforms"].values(), files.VECTOR["sinks"].values()
    inputs = {name for one in (*transforms, *sinks) for name in one["inputs"]}
    assert inputs == files.VECTOR["sources"].keys() | files.VECTOR["transforms"].keys()


def _names(value: Any) -> set[str]:
    match value:
        case alloy.Reference(name=name, arguments=()):
            return {name}
        case list():
            return {name for one in value for name in _names(one)}
        case _:
            return set()


def test_collectors_choose_the_pods_that_the_deployment_makes():
    base = files.FOLDER.parent / "base" / "deployment.yaml"
    labels = yaml.safe_load(base.read_text())["spec"]["template"]["metadata"]["labels"]
    [discovery] = [b for b in alloy.parse(files.ALLOY) if b.name == "discovery.kubernetes"]
    [selector] = discovery.blocks
    chosen = {
        selector.attributes["label"],
        files.VECTOR["sources"]["dispatcher"]["extra_label_selector"],
    }
    assert chosen == {f"app.kubernetes.io/name={labels['app.kubernetes.io/name']}"}


def test_config_maps_are_made_of_files_that_exist():
    made = yaml.safe_load((files.FOLDER / "kustomization.yaml").read_text())["configMapGenerator"]
    assert all((files.FOLDER / name).is_file() for one in made for name in one["files"])


# The runbook


def test_every_alert_has_a_runbook_entry_and_every_entry_an_alert():
    entries = re.findall(r"^## (\w+)$", files.RUNBOOK, re.MULTILINE)
    alerts = {rule["alert"] for rule in (*LOKI_ALERTS, *PROMETHEUS_ALERTS)}
    assert sorted(entries) == sorted(alerts)
    for rule in (*LOKI_ALERTS, *PROMETHEUS_ALERTS):
        assert rule["annotations"]["runbook"] == f"RUNBOOK.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_every_entry_says_what_it_means_why_what_to_do_and_how_it_ends():
    for entry in files.RUNBOOK.split("\n## ")[1:]:
        parts = re.findall(r"^\*\*(.+?):\*\*", entry, re.MULTILINE)
        assert parts == ["Means", "Likely causes", "First", "Ends"], entry[:40]


def test_the_runbooks_commands_are_commands():
    commands = re.findall(r"\b(?:wd|webhook-dispatcher) ([a-z]+(?: [^`\n|]*)?)", _code())
    assert len(commands) > 15
    for command in commands:
        _parse(cli, shlex.split(command))


def _code() -> str:
    blocks = re.findall(r"```sh\n(.*?)```", files.RUNBOOK, re.DOTALL)
    inline = re.findall(r"`((?:wd|webhook-dispatcher) [^`]+)`", files.RUNBOOK)
    return "\n".join([*blocks[1:], *inline])


def _parse(command: click.Command, arguments: list[str]) -> None:
    context = command.make_context(command.name, list(arguments))
    if isinstance(command, click.Group):
        rest = context._protected_args + context.args
        inner = command.get_command(context, rest[0])
        assert inner is not None, arguments
        _parse(inner, rest[1:])


def test_the_runbook_greps_for_lines_and_settings_that_there_are():
    names = set(re.findall(r"""grep (?:-E )?'"([\w.]+)"'""", files.RUNBOOK))
    assert names - {"ID"} <= files.SCHEMAS.keys()
    from service.settings import known_names  # noqa: PLC0415

    assert set(re.findall(r"DISPATCHER_\w+", files.RUNBOOK)) <= known_names()


def test_the_runbook_looks_at_the_log_of_every_replica():
    pods = re.findall(r"kubectl logs ([^|\n]+)", files.RUNBOOK)
    assert pods
    for arguments in pods:
        # With a selector, kubectl shows ten lines of each pod unless it is told otherwise.
        assert arguments.startswith("-l app.kubernetes.io/name=webhook-dispatcher --tail=")
    readme = (files.FOLDER.parents[1] / "README.md").read_text()
    for arguments in re.findall(r"kubectl logs (-f [^|\n]+)", readme):
        assert "--max-log-requests" in arguments  # of more than five pods it would follow none


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_runbooks_log_is_that_of_all_pods_in_order_and_names_them(tmp_path):
    def line(pod: str, second: int) -> str:
        told = f'{{"timestamp":"2030-01-01T00:00:0{second}.000000Z","error":"a}} [b] {{"}}'
        return f"[pod/{pod}/webhook-dispatcher] {told}"

    lines = [line("a-1", 1), line("a-1", 4), "[pod/a-1/webhook-dispatcher] no JSON"]
    lines += ["error: no previous container", line("b-2", 2), line("b-2", 3)]
    stub = tmp_path / "kubectl"
    stub.write_text("#!/bin/sh\necho \"$@\" >&2\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    stub.chmod(0o755)
    [function] = re.findall(r"^wdlog\(\) \{.*?^\}", files.RUNBOOK, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f"{function}\nwdlog --since=15m"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip().endswith("--prefix --since=15m")
    found = [json.loads(text) for text in done.stdout.splitlines()]
    assert [told["pod"] for told in found] == ["a-1", "b-2", "b-2", "a-1"]
    assert [told["timestamp"][18] for told in found] == ["1", "2", "3", "4"]
    assert {told["error"] for told in found} == {"a} [b] {"}


# Loki's own language


def test_lokis_parser_takes_every_query(engine):
    queries = [rule["expr"] for rule in (*LOKI_ALERTS, *RECORDINGS)]
    queries += [files.filled_in(query, "1m", "3h") for _, query, _ in PANELS]
    assert loki.faults(queries) == {}


def test_the_engine_refuses_what_is_no_query(engine):
    assert loki.faults(['{service_name="x"} | json | nothing known']) != {}


@pytest.fixture(scope="session")
def fired(run, engine) -> dict[str, tuple[Scenario, list[dict[str, Any]], dict[str, str]]]:
    """Return each scenario with what Loki's engine and Prometheus' rule code make of it."""
    results = {}
    for make in scenarios.SCENARIOS:
        scenario = make(run)
        entries = loki.through(PIPELINE, scenario.entries)
        end = (BEGIN + 60 * MINUTES) * NANOS
        alerts, faults = loki.alerts(entries, files.LOKI_ALERTS, BEGIN * NANOS, end, STEP * NANOS)
        results[make.__name__] = scenario, alerts, faults
    return results


@pytest.mark.parametrize("name", [make.__name__ for make in scenarios.SCENARIOS])
def test_the_alerts_that_should_fire_do_when_they_should_and_no_others(fired, name):
    scenario, alerts, _ = fired[name]
    periods = _periods(alerts)
    for wanted in scenario.fires:
        matching = [one for one in periods if _is(wanted, *one)]
        assert matching, (wanted, periods)
        periods = [one for one in periods if one not in matching]
    assert periods == []


def _periods(alerts: list[dict[str, Any]]) -> list[tuple[dict[str, str], float, float]]:
    """Return for how long each alert fires: its labels, the first and the last minute."""
    minutes: dict[Any, list[float]] = collections.defaultdict(list)
    for alert in alerts:
        key = tuple(sorted(alert["labels"].items()))
        minutes[key].append((alert["at"] / NANOS - BEGIN) / 60)
    periods = []
    for key, times in minutes.items():
        first = last = times[0]
        for minute in [*times[1:], math.inf]:
            if minute > last + STEP / 60:
                periods.append((dict(key), first, last))
                first = minute
            last = minute
    return periods


def _is(wanted: Fires, labels: dict[str, str], first: float, last: float) -> bool:
    step = STEP / 60
    return (
        labels["alertname"] == wanted.alert
        and (wanted.label is None or wanted.value in {None, labels[wanted.label]})
        and wanted.begins[0] <= first <= wanted.begins[1] + step
        and (
            last == MINUTES
            if wanted.ends is None
            else wanted.ends[0] - step <= last <= wanted.ends[1]
        )
    )


def test_every_alert_fires_in_some_scenario(fired):
    seen = {alert["name"] for _, alerts, _ in fired.values() for alert in alerts}
    seen |= {name for _, _, faults in fired.values() for name in faults}
    assert seen == {rule["alert"] for rule in LOKI_ALERTS}


def test_only_the_rule_for_one_subscription_breaks_when_very_many_fail(fired):
    for name, (_, _, faults) in fired.items():
        assert faults.keys() == (
            {"WebhookDeliveryFailing"} if name == "everything_fails" else set()
        )


def test_what_an_alert_says_is_filled_in(fired):
    for _, alerts, _ in fired.values():
        for alert in alerts:
            said = alert["annotations"]["summary"]
            assert said
            assert "<no value>" not in said
            assert "error" not in said.lower()


# The parse stage


def test_alloys_stages_keep_lines_and_take_times_levels_and_traces(run, collected):
    assert len(collected) == len(run.lines)
    for line, entry in zip(run.lines, collected, strict=True):
        assert entry == _wanted(line)


def _wanted(line: Line) -> Entry:
    traces: dict[str, str] = {
        name: line.told[name] for name in ("trace_id", "span_id") if name in line.told
    }
    moment = datetime.fromisoformat(line.told["timestamp"])
    micros = round(moment.timestamp() * 1_000_000)
    return Entry(
        micros * 1000,
        line.raw,
        {
            "namespace": "webhooks",
            "service_name": "webhook-dispatcher",
            "level": line.told["level"],
        },
        {"pod": line.pod, **traces},
    )


def test_what_is_no_json_is_kept_with_the_readers_time(engine):
    line = Line(NO_JSON, {}, "dispatcher-a")
    [entry] = loki.through(PIPELINE, [as_read(line)])
    assert (entry.at, entry.line) == (NANOS, NO_JSON)
    assert entry.labels == {"namespace": "webhooks", "service_name": "webhook-dispatcher"}


def test_vectors_stage_makes_the_same_of_every_line(run):
    vrl = pytest.importorskip("vrl_python", reason="VRL itself is not installed (vrl-python)")
    source, sink = files.VECTOR["transforms"]["parsed"]["source"], files.VECTOR["sinks"]["loki"]
    assert vrl.VRLRuntime.check_syntax(source) is None
    runtime = vrl.VRLRuntime()
    for line in run.lines:
        event = _as_vector_reads(line)
        found = runtime.execute(source, event).processed_event
        assert _as_vector_sends(found, sink) == _wanted(line)
    other = _as_vector_reads(Line(NO_JSON, {}, "dispatcher-a"))
    found = runtime.execute(source, other).processed_event
    assert (found["message"], found["level"]) == (NO_JSON, "unknown")
    assert found["timestamp"] == other["timestamp"]


def _as_vector_reads(line: Line) -> dict[str, Any]:
    return {
        "message": line.raw,
        "timestamp": "2020-01-01T00:00:00Z",
        "stream": "stdout",
        "kubernetes": {"pod_namespace": "webhooks", "pod_name": line.pod},
    }


def _as_vector_sends(event: dict[str, Any], sink: dict[str, Any]) -> Entry:
    """Do by hand what the sink does: fill in its templates, send the message as it is."""
    moment = datetime.fromisoformat(event["timestamp"].replace(" UTC", "+00:00"))
    fill = {"{{ namespace }}": event["namespace"], "{{ level }}": event["level"]}
    assert sink["encoding"] == {"codec": "raw_message"}
    assert sink["structured_metadata"] == {"*": "{{ metadata }}"}
    return Entry(
        round(moment.timestamp() * 1_000_000) * 1000,
        event["message"],
        {name: fill.get(template, template) for name, template in sink["labels"].items()},
        event["metadata"],
    )


# The dashboard


@pytest.fixture(scope="session")
def shown(collected) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what every panel of the dashboard shows of the real run, by its title and its query."""
    first, last = collected[0].at - 1, max(entry.at for entry in collected)
    # Whole steps, so that each line lies in one of them.
    seconds = 5 * math.ceil((last - first) / NANOS / 5)
    shown = {}
    for title, query, instant in PANELS:
        asked = files.filled_in(query, "5s", f"{seconds}s")
        begin, end = first, first + seconds * NANOS
        [result] = loki.ask(collected, [asked], begin, end, 0 if instant else 5 * NANOS)
        shown[title, query] = result
    return shown


def test_every_panel_shows_something_of_the_real_run(shown):
    assert [title for (title, _), result in shown.items() if not any(result.values())] == []


def test_panels_show_what_is_in_the_lines(run, shown):
    attempts = [line.told for line in run.lines if line.message.startswith("attempt.")]
    succeeded = [told for told in attempts if told["decision"] == "delivered"]
    assert _single(shown, "Success rate") == pytest.approx(len(succeeded) / len(attempts))
    assert _single(shown, "Dead letters") == len(run.of("delivery.dead_lettered"))
    assert _single(shown, "Rejected events") == len(run.of("event.rejected"))
    assert _single(shown, "Ejections") == len(run.of("target.ejected"))
    durations = sorted(told["duration_ms"] for told in attempts)
    assert _single(shown, "Slowest 5 % take at least") == pytest.approx(
        statistics.quantiles(durations, n=20, method="inclusive")[18]
    )


def test_tables_show_what_is_in_the_lines_by_subscription_and_target(run, shown):
    counted: dict[str, collections.Counter[tuple[str, ...]]] = collections.defaultdict(
        collections.Counter
    )
    for line in run.lines:
        if line.message.startswith("attempt."):
            key = line.told["subscription_id"], line.told["target"]
            counted["all"][key] += 1
            counted[line.message][key] += 1
    rates = {key: counted["attempt.succeeded"][key] / counted["all"][key] for key in counted["all"]}
    names = ("subscription_id", "target")
    assert _table(shown, "Success rate by target (twenty worst)", names) == pytest.approx(rates)
    failed = _table(shown, "Failed attempts by target (twenty most)", names)
    assert failed == counted["attempt.failed"]
    dead = collections.Counter(
        (line.told["subscription_id"], line.told["reason"])
        for line in run.of("delivery.dead_lettered")
    )
    title = "Dead letters by subscription and reason (twenty most)"
    assert _table(shown, title, ("subscription_id", "reason")) == dead


def test_rates_over_time_add_up_to_the_lines(run, shown):
    """What is shown for steps that lie side by side is, together, every line once."""
    retries = sum(1 for line in run.of("attempt.failed", decision="retry"))
    for title, wanted, per_second in (
        ("Attempts by what they led to", _count(run, "attempt."), True),
        ("Retries by subscription (ten most)", retries, True),
        ("Dead letters by reason", _count(run, "delivery.dead_lettered"), False),
        ("Ejections by target (ten most)", _count(run, "target.ejected"), False),
        ("Put off without an attempt, by cause", _count(run, "delivery.deferred"), True),
    ):
        [result] = [result for (name, _), result in shown.items() if name == title]
        told = sum(value for one in result["series"] for _, value in one["points"])
        assert told * (5 if per_second else 1) == pytest.approx(wanted), title


def _count(run: Run, prefix: str) -> int:
    return sum(1 for line in run.lines if line.message.startswith(prefix))


def _single(shown: Any, title: str) -> float:
    [series] = next(result["series"] for (name, _), result in shown.items() if name == title)
    return float(series["points"][-1][1])


def _table(shown: Any, title: str, names: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    result = next(result for (name, _), result in shown.items() if name == title)
    return {
        tuple(series["labels"][name] for name in names): series["points"][-1][1]
        for series in result["series"]
    }


def test_recording_rules_give_few_series_with_values(collected):
    end = max(entry.at for entry in collected)
    # A window that has the whole run in it, whatever its length.
    queries = [re.sub(r"\[\dm\]", "[10m]", rule["expr"]) for rule in RECORDINGS]
    for rule, result in zip(RECORDINGS, loki.ask(collected, queries, end, end), strict=True):
        assert 1 <= len(result["series"]) <= 12, rule["record"]
        for series in result["series"]:
            assert not {"subscription_id", "target", "event_type"} & series["labels"].keys()
            assert series["labels"]["namespace"] == "webhooks"


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in files.DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    identifiers = [panel["id"] for panel in files.DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


# Prometheus


def test_every_metric_and_label_in_prometheus_rules_is_on_the_page(run):
    page = run.after + run.workers
    kinds = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    kinds |= {
        f"{name}_bucket" for name in re.findall(r"^# TYPE (\w+) histogram", page, re.MULTILINE)
    }
    recorded = {rule["record"] for rule in RECORDINGS}
    for rule in PROMETHEUS_ALERTS:
        names = set(re.findall(r"\bwebhook_dispatcher[\w:]+", rule["expr"]))
        assert names
        assert names <= kinds | recorded, rule["alert"]
        for name, matchers in re.findall(r"\b(webhook_dispatcher\w+)\{([^}]*)\}", rule["expr"]):
            for label, _, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                known = _label_values(page, name, label)
                assert set(value.split("|")) <= known, (name, label, value)


def _label_values(page: str, name: str, label: str) -> set[str]:
    """Return the values of a label: those on the page, and those that the catalogue allows."""
    found = set(re.findall(rf'^{name}\{{[^}}]*\b{label}="([^"]*)"', page, re.MULTILINE))
    assert found, (name, label)
    match label:
        case "cause":
            return found | set(files.SCHEMAS["delivery.deferred"]["properties"]["cause"]["enum"])
        case _:
            return found


def test_promtool_finds_nothing_wrong(promtool):
    told = subprocess.run(
        [promtool, "check", "rules", "--lint-fatal", str(files.PROMETHEUS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_prometheus_alerts_fire_when_they_should_and_only_then(promtool, tmp_path):
    cases = yaml.safe_load((Path(loki.__file__).parent / "prometheus.yaml").read_text())
    _promtool_test(promtool, tmp_path, cases)
    fired = {
        case["alertname"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in PROMETHEUS_ALERTS}


def test_prometheus_alerts_fire_on_the_pages_of_the_real_run(run, promtool, tmp_path):
    """The page before the work stands for twenty minutes, the page after it from then on."""
    before, after = _samples(run.before), _samples(run.after)
    series = [
        {"series": name, "values": f"{before.get(name, '_')}x20 {value}x40"}
        for name, value in after.items()
    ]
    cases = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [
                    {"eval_time": "22m", "alertname": name, "exp_alerts": expected}
                    for name, expected in _expected_of_the_run(run).items()
                ],
            }
        ],
    }
    _promtool_test(promtool, tmp_path, cases)


def _samples(page: str) -> dict[str, str]:
    """Return the series of a page with their values, with the labels that a scrape adds."""
    samples = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", page, re.MULTILINE):
        added = ",".join(filter(None, [labels, 'namespace="webhooks"', 'instance="a:8080"']))
        samples[f"{name}{{{added}}}"] = str(float(value))
    return samples


def _expected_of_the_run(run: Run) -> dict[str, list[dict[str, Any]]]:
    by_name = {rule["alert"]: rule for rule in PROMETHEUS_ALERTS}

    def alert(name: str, summary: str, **labels: str) -> dict[str, Any]:
        rule = by_name[name]
        return {
            "exp_labels": rule["labels"] | {"namespace": "webhooks"} | labels,
            "exp_annotations": {"runbook": rule["annotations"]["runbook"], "summary": summary},
        }

    work = [line for line in run.lines if line.pod == "dispatcher-a"]
    dead = collections.Counter(
        line.told["reason"] for line in work if line.message == "delivery.dead_lettered"
    )
    rejected = sum(1 for line in work if line.message == "event.rejected")
    return {
        "WebhookDeadLettersGrowing": [
            alert(
                "WebhookDeadLettersGrowing",
                f"About {count} deliveries became dead letters in 30 minutes: {reason}.",
                reason=reason,
            )
            for reason, count in dead.items()
        ],
        "WebhookEventsRejected": [
            alert(
                "WebhookEventsRejected",
                f"About {rejected} messages were rejected in 15 minutes: not_json.",
                reason="not_json",
            )
        ],
        "WebhookUnrouted": [
            alert("WebhookUnrouted", "1 messages lie in the unrouted queue, which must stay empty.")
        ],
        "WebhookBrokerAway": [],
        "WebhookBrokerBlocked": [],
        "WebhookNoMetrics": [],
    }


def _promtool_test(promtool: str, folder: Path, cases: dict[str, Any]) -> None:
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump({**cases, "rule_files": [str(files.PROMETHEUS)]}))
    told = subprocess.run(
        [promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
