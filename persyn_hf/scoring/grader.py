"""math-verify in a subprocess, so that no expression can hang or crash the process that scores, or use up its memory.

sympy computes a tower of powers in C, where no signal reaches it, and math-verify's own time limit is a signal that
only the main thread may set. A subprocess can always be killed. Each process that scores starts one on first use; it
ends with its parent.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import IO, Any

from persyn_hf.errors import ScoringError
from persyn_hf.packages import require

#: Limits of one comparison in seconds: CPU time, and wall-clock time (for a busy machine).
_PROCESSOR_SECONDS = 5.0
_WALL_SECONDS = 60.0
#: Memory of the process, in bytes.
_MEMORY = 4 * 2**30


def compare_expressions(reference: str, answers: Sequence[str]) -> bool | None:
    """Compares an answer with a reference by math-verify.

    Args:
        reference (`str`): LaTeX in `\\boxed{}`, or text that math-verify finds an expression in.
        answers (`Sequence[str]`): Readings of the answer; the first that can be parsed counts. If empty, the reference
            is parsed and compared with nothing.

    Returns:
        `bool`, *optional*: Whether they are equal. `None` if the reference cannot be parsed within the limits of time
        and memory.

    Raises:
        MissingExtraError: If math-verify is not installed.
        ScoringError: If math-verify cannot be started.

    Example:
        >>> compare_expressions("\\\\boxed{1/2}", ["\\\\boxed{0.5}"])
        True
    """
    require("check mathematical answers", "math-verify")
    if not answers:
        return _readable(reference)
    reply = _ask(reference, answers)
    if reply is None:  # too long or too large: the reference, or the answer alone
        return False if _readable(reference) is not None else None
    return bool(reply["equal"]) if reply["read"] else None


@lru_cache(maxsize=100_000)
def _readable(reference: str) -> bool | None:
    reply = _ask(reference, [])
    return False if reply is not None and reply["read"] else None


class _Grader:
    """The subprocess and the id of the process that started it: a fork must use neither its pipes nor its lock."""

    lock = threading.Lock()
    process: subprocess.Popen[str] | None = None
    owner = 0


def _ask(reference: str, answers: Sequence[str]) -> dict[str, bool] | None:
    """The reply to one comparison; `None` if the subprocess died, in which case the next call starts another."""
    if _Grader.owner != os.getpid():
        _Grader.lock, _Grader.process, _Grader.owner = threading.Lock(), None, os.getpid()
    with _Grader.lock:
        process = _Grader.process
        if process is None or process.poll() is not None:
            process = _Grader.process = _start()
        line = _exchange(process, json.dumps([reference, list(answers), _PROCESSOR_SECONDS]))
        if line:
            reply: dict[str, bool] = json.loads(line)
            return reply
        _close()
    return None


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    """Sends a line to the subprocess and returns its reply; empty if it ended or reached the wall-clock limit."""
    timer = threading.Timer(_WALL_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdin is not None and process.stdout is not None, "both were asked for"
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # the subprocess ended before it read the line
        return ""
    finally:
        timer.cancel()


def _start() -> subprocess.Popen[str]:
    paths = [path or os.getcwd() for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from persyn_hf.scoring.grader import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None and process.stderr is not None, "both were asked for"
    if not process.stdout.readline():
        said = process.communicate()[1].strip().splitlines()
        raise ScoringError(
            f"math-verify cannot be started: {said[-1] if said else f'exit code {process.returncode}'}."
        )
    atexit.register(_close)
    return process


def _close() -> None:
    process = _Grader.process
    if process is None or _Grader.owner != os.getpid():
        return
    _Grader.process = None
    process.kill()
    process.communicate()


def serve() -> None:
    """Answers each line of JSON with one line until its input ends: the subprocess of [`compare_expressions`]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    from math_verify import parse, verify

    replies = sys.stdout
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    os.dup2(sys.stderr.fileno(), 2)
    _limit_memory()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        reference, answers, seconds = json.loads(line)
        _limit_time(seconds)
        _reply(replies, _compared(parse, verify, reference, answers))
        _limit_time(0)


def _compared(parse: Any, verify: Any, reference: str, answers: Sequence[str]) -> dict[str, bool]:
    """Compares one answer: `read` says whether the reference was parsed, `equal` whether the answer equals it."""
    try:
        gold = parse(reference, parsing_timeout=None)
        if not _is_expression(gold):
            return {"read": False, "equal": False}
        readings = (parse(answer, parsing_timeout=None) for answer in answers)
        found: list[Any] = next(filter(_is_expression, readings), [])
        return {"read": True, "equal": bool(verify(gold, found, timeout_seconds=None))}
    except Exception:  # noqa: BLE001 - sympy raises any exception; an answer it cannot compare is wrong
        return {"read": bool(answers), "equal": False}


def _is_expression(found: Sequence[Any]) -> bool:
    """Tells whether anything was parsed; math-verify adds the text itself."""
    return any(not isinstance(value, str) for value in found)


def _reply(replies: IO[str], reply: dict[str, bool]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _limit_time(seconds: float) -> None:
    """Limits CPU time: the process ends when it is used up; 0 removes the limit."""
    if hasattr(signal, "setitimer"):  # not on Windows, where only the wall-clock limit applies
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
