"""The command `check`: everything that a start would read, without starting."""

from collections.abc import Mapping
from pathlib import Path

import click

from service.commands.terminal import counted
from service.errors import ConfigurationError
from service.schemas import PACKAGED, EventSchemas
from service.settings import ALLOW_HTTP, Read, Settings, unknown_names
from service.subscriptions import Snapshot, load


def check_everything(path: Path | None, environ: Mapping[str, str]) -> int:
    """Print what is wrong, a line each, on standard error; return 0 when nothing is, else 2."""
    asked = Read(environ)
    settings, problems = _settings(environ)
    snapshot, found = _subscriptions(path or settings.subscriptions, settings, asked)
    problems += found
    schemas, found = _schemas(settings.schemas or PACKAGED)
    problems += found
    problems += [
        f"{name}: nothing reads this name" + (f": did you mean {nearest}?" if nearest else "")
        for name, nearest in unknown_names(environ, asked.names)
    ]
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        return 2
    warnings = snapshot.warnings if snapshot else ()
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    count = len(snapshot) if snapshot else 0
    types = len(schemas.types) if schemas else 0
    click.echo(f"good: {counted(count, 'subscriptions')}, {counted(types, 'event schemas')}")
    return 0


def _settings(environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Return the settings without those that are wrong, and what is wrong with these."""
    good, problems = dict(environ), list[str]()
    while True:
        try:
            return Settings.load(good), problems
        except ConfigurationError as error:
            found = str(error).splitlines()
        problems = problems or found  # what only follows from the first ones is not told
        wrong = {line.partition(":")[0] for line in found}
        left = {name: good[name] for name in good if not {name, name.removesuffix("_FILE")} & wrong}
        if len(left) == len(good):
            raise ConfigurationError("\n".join(problems))
        if ALLOW_HTTP in wrong:
            left[ALLOW_HTTP] = "true"  # who knows which was meant: no target is blamed for it
        good = left


def _subscriptions(
    path: Path, settings: Settings, environ: Mapping[str, str]
) -> tuple[Snapshot | None, list[str]]:
    try:
        return load(path, allow_http=settings.allow_http, environ=environ), []
    except ConfigurationError as error:
        return None, str(error).splitlines()


def _schemas(folder: Path) -> tuple[EventSchemas | None, list[str]]:
    try:
        return EventSchemas.load(folder), []
    except ConfigurationError as error:
        return None, str(error).splitlines()
