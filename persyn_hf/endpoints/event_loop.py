"""The event loop of everything that asks servers, with Ctrl-C and SIGTERM: the first lets what is in flight end."""

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

#: How the signals are called where their effect is told.
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
#: What a shell shows of a command that SIGTERM ended.
TERMINATED = 128 + signal.SIGTERM
#: Seconds between two looks at signals where a wait cannot be interrupted (Windows).
_LOOK = 0.5


class Interrupt:
    """What Ctrl-C and SIGTERM do to a run.

    The first signal drains the run, where it can be drained, and else stops it at once; the second stops it at once.

    Attributes:
        pressed (`int`): Signals that came.
        name (`str`): What came first, for messages.
        terminated (`bool`): Whether one of them was SIGTERM.
    """

    def __init__(self) -> None:
        self.pressed = 0
        self.name = _NAMES[signal.SIGINT]
        self.terminated = False
        self._drain: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def attach(self, drain: Callable[[], None]) -> None:
        """Says what the first signal calls; without, it stops the run at once."""
        self._drain = drain

    def enter(self) -> None:
        """Takes the running task for the run's."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for count in range(1, self.pressed + 1):  # before there was a loop
            self._loop.call_soon(self._act, count)

    def press(self, number: int = signal.SIGINT) -> None:
        """A signal came; may be called from any thread."""
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
                say(f"{self.name}: what is in flight is given up.")
            self._task.cancel()


def run_to_end(make: Callable[[Interrupt], Coroutine[Any, Any, Result]]) -> Result:
    """Runs a coroutine to its end, in a thread of its own where a loop is running already (Jupyter).

    In the main thread Ctrl-C and SIGTERM are taken while it runs; a handler of the caller's own stays as it is.

    Args:
        make (`Callable[[Interrupt], Coroutine]`): Makes it; it may [`Interrupt.attach`] what drains it.

    Returns:
        What the coroutine returns.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed, once what was in flight has ended, or at once where it was pressed
            twice or nothing drains the run.
        SystemExit: With 143 (128 + 15), if SIGTERM came; in the same way.
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
    return result  # type: ignore[return-value] # nothing was interrupted, so that it is there


async def _watched(make: Callable[[Interrupt], Coroutine[Any, Any, Result]], interrupt: Interrupt) -> Result:
    interrupt.enter()
    return await make(interrupt)


@contextmanager
def _signals_to(interrupt: Interrupt) -> Iterator[None]:
    """Gives the signals that nobody else handles to an interrupt."""
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


def _is_nobodys(number: int, handler: Any) -> bool:
    """Whether a handler is what Python, `asyncio.run` or [`exit_on_sigterm`] put there."""
    if number == signal.SIGTERM:
        return handler is signal.SIG_DFL or isinstance(handler, _Exit)
    of_asyncio = isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )
    return handler is signal.default_int_handler or of_asyncio


def _in_a_thread(interrupt: Interrupt, work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine in a thread of its own, and waits for it."""
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
        except KeyboardInterrupt:  # of a handler of the caller's
            interrupt.press()
    if failures:
        raise failures[0]
    return results[0]


class _Exit:
    """Handles SIGTERM outside of [`run_to_end`]: the process ends as after an error, so that files are cleaned up."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() == self._process:  # a worker that was forked ends without words
            say("SIGTERM: stopped. What is finished is kept; run again to go on.")
        raise SystemExit(TERMINATED)


def exit_on_sigterm() -> None:
    """Lets SIGTERM raise `SystemExit(143)`, with a line, where nothing handles it yet; for a command's main function.

    Batch systems (Slurm, Kubernetes) send it some seconds before they kill.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _Exit())


def say(*lines: object) -> None:
    """Writes lines to standard error; what is in them cannot command a terminal."""
    for line in lines:
        sys.stderr.write(tame_lines(line) + "\n")
    sys.stderr.flush()
