"""One run: a pool of requests for every teacher, all in one event loop, each answer kept as it arrives."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tqdm.auto import tqdm

from persyn_hf.config import Teacher
from persyn_hf.generation.client import Completion, Request, TeacherClient
from persyn_hf.generation.ledger import Ledger
from persyn_hf.generation.limit import AdaptiveLimit
from persyn_hf.generation.preflight import preflight
from persyn_hf.generation.protocols import endpoint_client
from persyn_hf.generation.scheduler import Job, RetryPolicy, TeacherPool
from persyn_hf.generation.tables import CHUNK, Asked, Plan

#: Batches of a local model that are gathered, so that rows of similar length meet.
_BATCHES_AHEAD = 4


def run_to_end(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine to its end, in a thread of its own where a loop is running already (Jupyter)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(make())
        return
    failure: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        await make()

    def run() -> None:
        try:
            asyncio.run(watched())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="persyn-generation")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failure:
        raise failure[0]


async def ask_all(plan: Plan, ledger: Ledger, progress: bool, policy: RetryPolicy | None) -> None:
    """Asks every teacher for what the ledger does not have; what failed is noted in the plan.

    Raises:
        ConfigError: If a teacher's key is missing, or its endpoint fails a check; nothing has been asked then.
        PromptTooLongError: If prompts do not fit a teacher; nothing has been asked then.
        LedgerError: If an answer cannot be kept.
    """
    async with AsyncExitStack() as stack:
        clients = _clients(plan)
        for client in clients:
            stack.push_async_callback(client.aclose)
        bars = [
            _Bar(asked.teacher.name, plan.total(asked), position if progress else None)
            for position, asked in enumerate(plan.asked)
        ]
        for bar in bars:
            stack.callback(bar.close)
        work = [_missing(plan.jobs(asked), ledger, bar) for asked, bar in zip(plan.asked, bars, strict=True)]
        first = [next(jobs, None) for jobs in work]
        await preflight(
            [
                (asked.teacher, functools.partial(plan.messages, asked))
                for asked, job in zip(plan.asked, first, strict=True)
                if job is not None
            ],
            patience=(policy or RetryPolicy()).down_after_unseen,
        )
        try:
            async with asyncio.TaskGroup() as group:
                for asked, client, bar, job, jobs in zip(plan.asked, clients, bars, first, work, strict=True):
                    if job is not None:
                        jobs = itertools.chain([job], jobs)
                    group.create_task(_ask_one(plan, asked, client, jobs, ledger, bar, policy))
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None


async def _ask_one(
    plan: Plan, asked: Asked, client: TeacherClient, jobs: Iterator[Job], ledger: Ledger, bar: _Bar,
    policy: RetryPolicy | None,
) -> None:  # fmt: skip
    def answered(job: Job, completion: Completion) -> None:
        ledger.put(job.key, completion)
        bar.answered(completion)

    def failed(job: Job, message: str) -> None:
        plan.errors[job.key] = message
        bar.failed()

    teacher = asked.teacher
    local = teacher.backend == "local"
    limit = AdaptiveLimit(teacher.batch_size * _BATCHES_AHEAD if local else teacher.max_concurrency or 32)
    timeout = None if local else teacher.timeout
    pool = TeacherPool(client, jobs, limit, timeout, answered, failed, policy=policy)
    await pool.run()
    if pool.down is not None:
        plan.down[teacher.name] = f"the teacher is down: {pool.down}"


def _clients(plan: Plan) -> list[TeacherClient]:
    """One client per teacher; local teachers of one model share theirs."""

    def kind(asked: Asked) -> tuple[str, str, str | None]:
        return asked.revision, asked.teacher.dtype, asked.teacher.device

    local = [asked for asked in plan.asked if asked.teacher.backend == "local"]
    shared = {
        kind(asked): _LocalClient([other.teacher for other in local if kind(other) == kind(asked)], asked.revision)
        for asked in local
    }
    return [
        shared[kind(asked)]
        if asked.teacher.backend == "local"
        else endpoint_client(asked.teacher, asked.teacher.endpoints[0])
        for asked in plan.asked
    ]


class _LocalClient:
    """Loads torch and the model only when something is asked, so that a rerun with nothing to ask is quick."""

    def __init__(self, teachers: Sequence[Teacher], identity: str) -> None:
        self._teachers, self._identity = teachers, identity
        self._batcher: TeacherClient | None = None

    async def complete(self, request: Request) -> Completion:
        if self._batcher is None:
            from persyn_hf.generation.local import LocalBatcher

            self._batcher = LocalBatcher(self._teachers, self._identity)
        return await self._batcher.complete(request)

    async def aclose(self) -> None:
        if self._batcher is not None:
            await self._batcher.aclose()


def _missing(jobs: Iterator[Job], ledger: Ledger, bar: _Bar) -> Iterator[Job]:
    """The jobs that the ledger has no answer for."""
    while chunk := list(itertools.islice(jobs, CHUNK)):
        found = ledger.get_many([job.key for job in chunk])
        bar.found(len(found))
        yield from (job for job in chunk if job.key not in found)


class _Bar:
    """One teacher's line of progress."""

    def __init__(self, name: str, total: int, position: int | None) -> None:
        self._errors = self._tokens = 0
        self._began = time.monotonic()
        # `disable=None`: quiet where there is no terminal.
        quiet = True if position is None else None
        self._bar = tqdm(total=total, desc=name, position=position, unit="row", disable=quiet)

    def found(self, count: int) -> None:
        self._bar.update(count)

    def answered(self, completion: Completion) -> None:
        self._tokens += completion.completion_tokens or 0
        self._step()

    def failed(self) -> None:
        self._errors += 1
        self._step()

    def _step(self) -> None:
        if not self._bar.disable:
            speed = self._tokens / max(time.monotonic() - self._began, 1e-3)
            self._bar.set_postfix_str(f"errors {self._errors}, {speed:.0f} tokens/s", refresh=False)
            self._bar.update(1)

    def close(self) -> None:
        self._bar.close()
