"""The tour from its first process to its last: builds the scenery, shows the steps, sums up."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from service import __version__
from service.demo.dispatcher import Dispatcher, running
from service.demo.keeping import stay_up
from service.demo.ledger import Ledger, Summary
from service.demo.place import DemoFailed, Place
from service.demo.receivers import refusing, serving
from service.demo.rows import Rows
from service.demo.scenery import REFUSING, Scenery
from service.demo.screen import BOLD, Screen
from service.demo.steps import Steps
from service.publish import Publisher

_PROMISED: Final = Summary(
    published=14,
    delivered=15,
    failed_over=1,
    retried=3,
    dead_lettered=1,
    redriven=1,
    rejected=1,
    lost=0,
    doubled=0,
    forged=0,
)


class Tour:
    """One showing."""

    def __init__(self, place: Place, screen: Screen) -> None:
        self._place = place
        self._screen = screen
        self._scenery = Scenery()
        self._ledger = Ledger()
        self._rows = Rows(screen, self._scenery.receivers)

    async def run(self, *, keep: bool) -> None:
        """Show everything; raises DemoFailed where a promise is not kept."""
        async with serving(self._scenery.receivers.values()):
            with refusing(REFUSING) as refusing_url:
                self._scenery.write(self._place.subscriptions, refusing_url)
                await self._show()
                if keep:
                    await stay_up(
                        self._place, self._screen, self._scenery.environ, self._rows, self._running
                    )

    async def _show(self) -> None:
        async with self._running({}) as dispatcher, self._publishing() as publisher:
            self._introduce(dispatcher)
            steps = Steps(
                *(self._place, self._screen, self._scenery, self._ledger),
                *(dispatcher, publisher),
            )
            for number, step in enumerate(steps, start=1):
                self._screen.title(f"{number}  {step.title}")
                self._screen.tell(step.text)
                self._screen.columns()
                await self._screen.pause()
                await step.show()
                await self._screen.pause()
        self._sum_up(dispatcher)

    def _introduce(self, dispatcher: Dispatcher) -> None:
        screen, scenery = self._screen, self._scenery
        screen.fact("dispatcher", f"webhook-dispatcher {__version__}, process {dispatcher.pid}")
        screen.fact("subscriptions", ", ".join(scenery.secrets))
        screen.fact("receivers", f"{', '.join(scenery.receivers)}; each checks every signature")
        screen.line("\n   producer --> RabbitMQ --> dispatcher --> signed POST --> receiver\n")
        screen.tell(
            """In the steps below each row is an attempt: one HTTP request to one target. It has the
            telling fields of the JSON line that the dispatcher logged, and what the receiver saw."""
        )

    def _running(self, environ: Mapping[str, str]) -> AbstractAsyncContextManager[Dispatcher]:
        return running(self._place, {**self._scenery.environ, **environ}, self._rows.on_line)

    @asynccontextmanager
    async def _publishing(self) -> AsyncIterator[Publisher]:
        address = self._place.address
        async with Publisher(
            address.urls, self._place.exchange, source="/demo", ca_file=address.ca_file
        ) as publisher:
            yield publisher

    def _sum_up(self, dispatcher: Dispatcher) -> None:
        summary = self._ledger.summary(self._scenery.receivers.values(), dispatcher.lines)
        self._screen.title("Summary")
        for name, number, meaning in summary.rows():
            self._screen.line(f"   {name:14} {number:>4}   {meaning}", "" if number else BOLD)
        broken = list(summary.differences(_PROMISED))
        if broken:
            raise DemoFailed(f"the demo promised what was not so: {'; '.join(broken)}")
        self._screen.line()
        self._screen.good("Everything happened as promised.")
