"""Loading: from a file, or a folder of files, to a snapshot, or to everything that is wrong."""

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath

from pydantic import ValidationError

from service.clock import Clock, SystemClock
from service.core.subscription import Subscription
from service.subscriptions import wording
from service.subscriptions.build import Builder, Parts
from service.subscriptions.documents import SUFFIXES, Document, Entries, parse
from service.subscriptions.files import Files, Look
from service.subscriptions.malformed import Malformed
from service.subscriptions.memory import Built, Keys, Memory
from service.subscriptions.model import FileModel, PolicyModel, SubscriptionModel
from service.subscriptions.pace import Step, each, hurry
from service.subscriptions.problems import Path, Problem, Report, SubscriptionsError, field_name
from service.subscriptions.snapshot import FilterReport, Snapshot

_MAX_BYTES = 512 * 1024 * 1024
_MANY = 10_000  # subscriptions whose objects the garbage collector walks for tens of milliseconds
_YOUNG = 2_000  # objects that the garbage collector walks at once while subscriptions are loaded


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading the files, and how each file looked that this depends on.

    `memory` is for the next reading: of this result, or where that is refused, of the one before.
    `may_pass`: it is refused, and may not be the next time though every file looks the same.
    """

    result: Snapshot | SubscriptionsError
    looks: Mapping[FilePath, Look | None]
    memory: Memory
    may_pass: bool = False


def load(
    source: FilePath,
    *,
    allow_http: bool,
    environ: Mapping[str, str],
    on_undecided: FilterReport | None = None,
    clock: Clock | None = None,
) -> Snapshot:
    """Return the snapshot of a file or folder; raises `SubscriptionsError` with all problems."""
    reading = read(
        source, allow_http=allow_http, environ=environ, on_undecided=on_undecided, clock=clock
    )
    if isinstance(reading.result, SubscriptionsError):
        raise reading.result
    return reading.result


def read(
    source: FilePath,
    *,
    allow_http: bool,
    environ: Mapping[str, str],
    on_undecided: FilterReport | None = None,
    clock: Clock | None = None,
    before: Memory | None = None,
    step: Step = hurry,
) -> Reading:
    """Read a file or folder; never raises for what stands in it.

    `before` is the memory of an earlier reading with the same `allow_http`; `step` sets the pace.
    """
    before = before or Memory()
    step = _sweeping(step)
    files = Files()
    loading = _Loading(files, Parts(files, environ, allow_http=allow_http), before, step)
    with _garbage_collector_paused():
        loading.take_all(source)
        if loading.problems:
            refused = SubscriptionsError(tuple(loading.problems))
            return Reading(refused, files.looks, before, files.may_pass)
        snapshot = Snapshot(
            each(loading.subscriptions, step),
            version=loading.digest.hexdigest()[:12],
            loaded_at=(clock or SystemClock()).now(),
            warnings=tuple(loading.warnings),
            on_undecided=on_undecided,
        )
        if len(snapshot) >= _MANY:
            # The first walk over them would hold the event loop up for a quarter of a second.  Not for
            # fewer: what becomes garbage in a cycle, and lives at this moment, is never freed again.
            gc.collect(0)
            gc.freeze()
        return Reading(snapshot, files.looks, loading.memory)


@contextmanager
def _garbage_collector_paused() -> Iterator[None]:
    """Spare the collector millions of objects that are all alive and in no cycle.

    It would walk them again and again, at half the cost of a large load.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect(1)
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _sweeping(step: Step) -> Step:
    """Free what deliveries leave behind in cycles meanwhile, after some of the steps.

    Each walk is over young objects only, takes the event loop about a millisecond, and leaves none of
    them to the next.
    """

    def swept() -> None:
        step()
        if gc.get_count()[0] >= _YOUNG:
            gc.collect(0)

    return swept


class _Loading:
    """One load under way: what was found so far, over all files."""

    def __init__(self, files: Files, parts: Parts, before: Memory, step: Step) -> None:
        self.subscriptions: list[Subscription] = []
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.digest = hashlib.sha256()
        self.memory = Memory()
        self._before = before
        self._step = step
        self._files = files
        self._parts = parts
        self._ids: dict[str, tuple[str, int]] = {}

    def take_all(self, source: FilePath) -> None:
        """Read the file, or every file of the folder in the order of their names."""
        try:
            paths = self._paths(source)
        except OSError as error:
            self._refuse(source, f"cannot be read: {error.strerror}")
            return
        if not paths:
            self._refuse(source, f"holds no file that ends in {', '.join(SUFFIXES)}")
        for path in paths:
            self._take(path)

    def _paths(self, source: FilePath) -> list[FilePath]:
        """Return the files; hidden ones are left out, such as the `..data` of a ConfigMap."""
        if not self._files.is_folder(source):
            return [source]
        return [
            source / name
            for name in self._files.names(source)
            if name.endswith(SUFFIXES) and not name.startswith(".")
        ]

    def _refuse(self, path: FilePath, message: str) -> None:
        self.problems.append(Problem(str(path), None, "", message))

    def _take(self, path: FilePath) -> None:
        try:
            document = parse(str(path), self._content(path), self._step)
            report = Report()
            self._take_document(document, path.parent, report)
            self._locate(document, report)
        except OSError as error:
            self._refuse(path, f"cannot be read: {error.strerror}")
        except Malformed as error:
            where = field_name(error.path)
            self.problems.append(Problem(str(path), error.line, where, error.message))

    def _content(self, path: FilePath) -> bytes:
        content = self._files.read(path, _MAX_BYTES)
        self.digest.update(content)
        return content

    def _take_document(self, document: Document, folder: FilePath, report: Report) -> None:
        defaults = _defaults(document.outer, report)
        if defaults is None:
            return
        builder = Builder(self._parts, defaults, folder, report)
        keys = Keys(document.frame, folder)
        for index in range(len(document.entries)):
            if report.full:
                return
            self._step()
            built = self._take_entry(document.entries, index, keys, builder, report)
            if built is not None:
                self._add(built.subscription, (document.name, index), report)

    def _take_entry(
        self, entries: Entries, index: int, keys: Keys, builder: Builder, report: Report
    ) -> Built | None:
        """Return what was built from an entry, now or in an earlier load."""
        written = entries.written(index)
        key = None if written is None else keys.key(written)
        built = None if key is None else self._before.get(key)
        if built is None or not self._parts.still(built.needs):
            heard = report.heard
            built = _build(entries.value(index), index, builder, report)
            if built is None or report.heard > heard:
                return built
        if key is not None:
            self.memory.put(key, built)
        return built

    def _add(self, subscription: Subscription, place: tuple[str, int], report: Report) -> None:
        first = self._ids.setdefault(subscription.id, place)
        if first is not place:
            report.add(
                ("subscriptions", place[1], "id"),
                f"is already used by subscriptions[{first[1]}] in {first[0]}",
            )
        self.subscriptions.append(subscription)

    def _locate(self, document: Document, report: Report) -> None:
        """Turn places into lines; reads the document again, but only if there is something to say."""
        found = report.problems + report.warnings
        if not found:
            return
        lines = document.lines(path for path, _ in found)
        self.problems += _problems(document.name, report.problems, lines)
        self.warnings += _problems(document.name, report.warnings, lines)
        if report.full:
            self._refuse(FilePath(document.name), "may have more problems; these come first")


def _defaults(outer: object, report: Report) -> PolicyModel | None:
    """Check everything of a document but its entries; return the defaults."""
    if not isinstance(outer, dict):
        report.add((), "must be a map with the key subscriptions")
        return None
    try:
        return FileModel.model_validate(outer).defaults
    except ValidationError as error:
        _report(error, FileModel, (), report)
        return None


def _build(entry: object, index: int, builder: Builder, report: Report) -> Built | None:
    """Check an entry and build its subscription."""
    where: Path = ("subscriptions", index)
    try:
        model = SubscriptionModel.model_validate(entry)
    except ValidationError as error:
        _report(error, SubscriptionModel, where, report)
        return None
    return builder.build(model, where)


def _report(
    error: ValidationError,
    model: type[FileModel] | type[SubscriptionModel],
    where: Path,
    report: Report,
) -> None:
    for path, message in wording.problems(error, model):
        report.add((*where, *path), message)


def _problems(
    name: str, found: list[tuple[Path, str]], lines: Mapping[Path, int]
) -> Iterator[Problem]:
    """Yield them in the order of their lines."""
    for path, message in sorted(found, key=lambda place: lines[place[0]]):
        yield Problem(name, lines[path], field_name(path), message)
