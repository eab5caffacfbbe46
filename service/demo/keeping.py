"""`demo --keep`: everything stays up after the tour, and a person is told how to use it."""

import asyncio
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from service.demo.dispatcher import Dispatcher
from service.demo.place import DemoFailed, Place, program
from service.demo.receivers import HOST
from service.demo.rows import Rows
from service.demo.screen import Screen
from service.ports import free_port
from service.settings import PREFIX

Running = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Dispatcher]]


async def stay_up(
    place: Place, screen: Screen, secrets: Mapping[str, str], rows: Rows, running: Running
) -> None:
    """Run another dispatcher until Ctrl-C; raises DemoFailed should it end by itself."""
    port = free_port()
    _write_environment(place, secrets)
    async with running({f"{PREFIX}ADMIN_PORT": str(port)}) as dispatcher:
        _explain(place, screen, dispatcher, f"http://{HOST}:{port}")
        rows.show_more()
        await _until_interrupted(dispatcher)
        screen.line("\nStopping.")


async def _until_interrupted(dispatcher: Dispatcher) -> None:
    try:
        await dispatcher.process.wait()
    except asyncio.CancelledError:
        # Here an interrupt is the way to end, not a disturbance: the program goes on from it.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return
    raise DemoFailed("the dispatcher ended by itself")


def _write_environment(place: Place, secrets: Mapping[str, str]) -> None:
    """Write the settings as a file for a shell; only its owner may read it."""
    path = place.folder / "environment"
    path.touch(mode=0o600)
    told = {**place.settings, **secrets}
    path.write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())
    )


def _explain(place: Place, screen: Screen, dispatcher: Dispatcher, admin: str) -> None:
    called = program()
    screen.title(
        "A new dispatcher runs, and everything stays up until Ctrl-C. In another terminal:"
    )
    screen.line(
        f"""
   . {place.folder}/environment

   {called} publish order.created --data '{{"order_id": "ord_1"}}'
   {called} publish alert.raised --data '{{"severity": "critical"}}'
   {called} publish order.created      # breaks its schema: is rejected
   {called} dead list
   {called} rejected list
   tail -n +1 -f {place.log_file} | {called} stats --follow --plot
   curl {admin}/status                 # also /metrics, /readyz, /livez
"""
    )
    screen.fact("log file", str(place.log_file))
    screen.fact("subscriptions", f"{place.subscriptions} (edit it: it is read again at once)")
    screen.fact("dispatcher", f"process {dispatcher.pid}")
    screen.line()
    screen.tell("What happens from now on is shown here as it comes.")
    screen.columns()
