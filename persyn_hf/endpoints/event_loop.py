"""Ctrl-C: the first one lets what is in flight end, the second stops at once."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class Interrupt:
    """What a press of Ctrl-C does to a run. Belongs to the run's event loop but for [`press`]."""

    def __init__(self) -> None:
        self.pressed = 0
        self._drain: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def attach(self, drain: Callable[[], None]) -> None:
        """Says what the first press calls; before that it stops the run at once."""
        self._drain = drain

    def enter(self) -> None:
        """Takes the running task for the run's."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()

    def press(self) -> None:
        """Ctrl-C was pressed; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pressed)

    def _pressed(self) -> None:
        self.pressed += 1
        if self.pressed == 1 and self._drain is not None:
            self._drain()
        elif self._task is not None:
            self._task.cancel()


def run_to_end(make: Callable[[Interrupt], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine to its end, in a thread of its own where a loop is running already (Jupyter).

    Args:
        make (`Callable[[Interrupt], Coroutine]`): Makes it; it may [`Interrupt.attach`] what drains it.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed, once what was in flight has ended, or at once where it was pressed
            twice.
    """
    interrupt = Interrupt()
    # A handler of the caller's, or SIGINT ignored in the background, stays as it is.
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            asyncio.run(_watched(make, interrupt, ours))
        except asyncio.CancelledError:
            if not interrupt.pressed:
                raise
    else:
        _in_a_thread(make, interrupt)
    if interrupt.pressed:
        raise KeyboardInterrupt


async def _watched(make: Callable[[Interrupt], Coroutine[Any, Any, None]], interrupt: Interrupt, handle: bool) -> None:
    interrupt.enter()
    loop = asyncio.get_running_loop()
    if handle:
        loop.add_signal_handler(signal.SIGINT, interrupt.press)
    try:
        await make(interrupt)
    finally:
        if handle:
            loop.remove_signal_handler(signal.SIGINT)


def _in_a_thread(make: Callable[[Interrupt], Coroutine[Any, Any, None]], interrupt: Interrupt) -> None:
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_watched(make, interrupt, False))
        except asyncio.CancelledError as error:
            if not interrupt.pressed:
                failure.append(error)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="persyn-generation")
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            interrupt.press()
    if failure:
        raise failure[0]
