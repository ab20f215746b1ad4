"""The event loop for requests to servers; the first Ctrl-C or SIGTERM lets the requests in flight finish."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

from persyn_hf.text import tame_lines

Result = TypeVar("Result")

#: Names of the signals in messages.
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
#: Exit code of a command that SIGTERM ended, as shells report it.
TERMINATED = 128 + signal.SIGTERM
#: Seconds between two checks for signals on systems where a wait cannot be interrupted (Windows).
_LOOK = 0.5


class Interrupt:
    """Applies Ctrl-C and SIGTERM to a run.

    The first signal drains the run if it can be drained, and otherwise stops it at once; the second stops it at once.

    Attributes:
        pressed (`int`): Number of signals received.
        name (`str`): Name of the first signal, for messages.
        terminated (`bool`): Whether one of them was SIGTERM.
    """

    def __init__(self) -> None:
        self.pressed = 0
        self.name = _NAMES[signal.SIGINT]
        self.terminated = False
        self._drain: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None

    def attach(self, drain: Callable[[], None]) -> None:
        """Sets the function that the first signal calls; without one, the first signal stops the run at once."""
        self._drain = drain

    def enter(self) -> None:
        """Registers the running task as the task of the run."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for count in range(1, self.pressed + 1):  # before there was a loop
            self._loop.call_soon(self._act, count)

    def press(self, number: int = signal.SIGINT) -> None:
        """Handles a signal; may be called from any thread."""
        self.pressed += 1
        self.terminated |= number == signal.SIGTERM
        if self.pressed == 1:
            self.name = _NAMES[signal.Signals(number)]
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._act, self.pressed)

    def _act(self, count: int) -> None:
        if count == 1 and self._drain is not None:
            self._drain()
        elif self._task is not None and not self._task.done():
            if count == 1:
                say(f"{self.name}: cancelling the requests in flight.")
            self._task.cancel()


def run_to_end(make: Callable[[Interrupt], Coroutine[object, None, Result]]) -> Result:
    """Runs a coroutine to its end, in a separate thread if a loop is already running (Jupyter).

    In the main thread, Ctrl-C and SIGTERM are handled while it runs; the caller's own handlers are kept.

    Args:
        make (`Callable[[Interrupt], Coroutine]`): Creates the coroutine; it may [`Interrupt.attach`] a function that
            drains the run.

    Returns:
        The result of the coroutine.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed: after the requests in flight have finished, or at once if it was
            pressed twice or the run cannot be drained.
        SystemExit: With code 143 (128 + 15), if SIGTERM was received, at the same times.
    """
    interrupt = Interrupt()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run = asyncio.run
    else:
        run = functools.partial(_in_a_thread, interrupt)
    result: Result | None = None
    with _signals_to(interrupt):
        try:
            result = run(_watched(make, interrupt))
        except asyncio.CancelledError:
            if not interrupt.pressed:
                raise
    if interrupt.terminated:
        raise SystemExit(TERMINATED)
    if interrupt.pressed:
        raise KeyboardInterrupt
    return result  # type: ignore[return-value] # set, because nothing was interrupted


async def _watched(make: Callable[[Interrupt], Coroutine[object, None, Result]], interrupt: Interrupt) -> Result:
    interrupt.enter()
    return await make(interrupt)


@contextmanager
def _signals_to(interrupt: Interrupt) -> Iterator[None]:
    """Passes the signals without a custom handler to an interrupt."""
    taken: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt.press(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if _is_nobodys(number, handler):
                taken[number] = handler
                signal.signal(number, handle)
    try:
        yield
    finally:
        for taken_number, handler in taken.items():
            signal.signal(taken_number, handler)


def _is_nobodys(number: int, handler: object) -> bool:
    """Returns whether a handler was set by Python, `asyncio.run` or [`exit_on_sigterm`]."""
    if number == signal.SIGTERM:
        return handler is signal.SIG_DFL or isinstance(handler, _Exit)
    of_asyncio = isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )
    return handler is signal.default_int_handler or of_asyncio


def _in_a_thread(interrupt: Interrupt, work: Coroutine[object, None, Result]) -> Result:
    """Runs a coroutine in a separate thread, and waits for it."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="persyn-event-loop")
    thread.start()
    while thread.is_alive():
        try:
            thread.join(_LOOK)
        except KeyboardInterrupt:  # raised by a handler of the caller
            interrupt.press()
    if failures:
        raise failures[0]
    return results[0]


class _Exit:
    """Handles SIGTERM outside of [`run_to_end`]: the process exits as after an error, so files are cleaned up."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() == self._process:  # a forked worker exits silently
            say("SIGTERM: stopped. Finished work is kept; run again to resume.")
        raise SystemExit(TERMINATED)


def exit_on_sigterm() -> None:
    """Makes SIGTERM raise `SystemExit(143)` with a message, unless it has a handler; for a command's main function.

    Batch systems (Slurm, Kubernetes) send SIGTERM some seconds before they kill the process.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _Exit())


def say(*lines: object) -> None:
    """Writes lines to standard error, without control characters."""
    for line in lines:
        sys.stderr.write(tame_lines(line) + "\n")
    sys.stderr.flush()
