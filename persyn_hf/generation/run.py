"""One run: a pool of requests for every teacher in one event loop; each answer is stored as it arrives."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from persyn_hf.config import Teacher
from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.endpoints.event_loop import Interrupt, say
from persyn_hf.endpoints.server import server
from persyn_hf.generation.answer import cleaned
from persyn_hf.generation.budget import Purse
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import Request, TeacherClient
from persyn_hf.generation.describe import EndpointLimits
from persyn_hf.generation.jobs import Asked, Exchange, Plan
from persyn_hf.generation.lane import Lane
from persyn_hf.generation.missing import Missing
from persyn_hf.generation.notices import Notices
from persyn_hf.generation.pool import Job, Listener, RetryPolicy, TeacherPool
from persyn_hf.generation.preflight import preflight
from persyn_hf.generation.progress import Tally, progress_shown
from persyn_hf.generation.tgi import TgiClient
from persyn_hf.generation.twins import find_twins
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger, Origin
from persyn_hf.ledger.money import Budget
from persyn_hf.packages import require
from persyn_hf.text import tame

_log = logging.getLogger(__name__)
#: Batches of a local model that are collected, so that rows of similar length share a batch.
_BATCHES_AHEAD = 4
#: Maximum number of answers per commit; a killed process must request so many again.
_COMMIT = 3
#: Seconds between two calls of `ahead`; none is made while the loop is late by half as much, with answers to read.
_AHEAD_EVERY = 0.02


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Args:
        progress (`bool`): Whether to show progress.
        policy (`RetryPolicy`): Retries and circuit breaker.
        max_cost (`float`, *optional*): Limit on the cost of all answers of the ledger, in USD.
    """

    progress: bool
    policy: RetryPolicy
    max_cost: float | None = None


async def ask_teachers(
    plan: Plan, ledger: Ledger, options: Options, interrupt: Interrupt, ahead: Callable[[], object] = lambda: None
) -> None:
    """Collects the answers that the ledger does not have from every teacher; failures are recorded in the plan.

    Args:
        plan (`Plan`): Assignment of rows to teachers.
        ledger (`Ledger`): Ledger that stores the answers.
        options (`Options`): Options of the run.
        interrupt (`Interrupt`): Signal handling, to which the function that drains the run is attached.
        ahead (`Callable[[], object]`, *optional*): Function that processes finished answers for a few milliseconds,
            called during the run.

    Raises:
        ConfigError: If a teacher's key is missing, or its endpoint fails a check. No requests were sent then.
        PromptTooLongError: If prompts do not fit a teacher. No requests were sent then.
        LedgerError: If an answer cannot be stored.
    """
    async with AsyncExitStack() as stack:
        clients = _clients(plan)
        for client in {id(client): client for several in clients for client in several}.values():
            stack.push_async_callback(client.aclose)
        tallies = [Tally(asked.name, len(plan.rows(asked))) for asked in plan.asked]
        claims = stack.enter_context(Claims(ledger))
        missing = [Missing(claims, tally) for tally in tallies]
        work = [own.draw(plan.jobs(asked)) for asked, own in zip(plan.asked, missing, strict=True)]
        first = [next(jobs, None) for jobs in work]
        twins = [one for one in find_twins(plan.asked) if one.apart]
        twinned = {name for one in twins for name in one.names}  # one of them has claimed the rows of the others
        limits = await preflight(
            [
                (asked.teacher, functools.partial(plan.messages, asked))
                for asked, job in zip(plan.asked, first, strict=True)
                if job is not None or asked.name in twinned
            ],
            patience=options.policy.down_after_unseen,
            problems=[str(one) for one in twins],
        )
        run = _Run(plan, claims, options)
        for asked, tally, own, several in zip(plan.asked, tallies, missing, clients, strict=True):
            run.add(asked, tally, own, several, limits, stack)
        interrupt.attach(functools.partial(run.drain, interrupt))
        with progress_shown(tallies, options.progress) as tells:
            try:
                await run.go(
                    [itertools.chain([job] if job else [], jobs) for job, jobs in zip(first, work, strict=True)], ahead
                )
            finally:
                run.report(interrupt.pressed > 0, tells)


class _Run:
    """All teachers of one run."""

    def __init__(self, plan: Plan, claims: Claims, options: Options) -> None:
        self._plan, self._claims, self._options = plan, claims, options
        self._ledger, self._budget = claims.ledger, Budget(options.max_cost, claims)
        self._kept: list[tuple[str, Completion, Origin]] = []
        self._tallies: dict[str, Tally] = {}
        self._missing: dict[str, Missing] = {}
        self._pools: dict[str, TeacherPool] = {}
        rerouting = plan.routed and any(asked.teacher.on_teacher_down == "reroute" for asked in plan.asked)
        self._exchange = Exchange([asked.name for asked in plan.asked]) if rerouting else None

    def add(
        self,
        asked: Asked,
        tally: Tally,
        missing: Missing,
        clients: Sequence[TeacherClient],
        limits: Mapping[tuple[str, str], EndpointLimits],
        stack: AsyncExitStack,
    ) -> None:
        """Adds a teacher with its pool of requests."""
        teacher, notices = asked.teacher, Notices(asked.teacher)

        def answered(job: Job, completion: Completion) -> None:
            origin = asked.origin(job.request, completion)
            self._kept.append((job.key, completion, origin))
            missing.settled(job.key)
            tally.count(completion, origin.cost or 0.0, cleaned(completion, job.request, teacher).leak)
            notices.heed(completion)
            if len(self._kept) >= _COMMIT:
                self._commit()

        def failed(job: Job, message: str) -> None:
            self._plan.errors[job.key] = message
            tally.failed += 1
            missing.failed(job.key)

        local = teacher.backend == "local"
        if local:
            lanes = [_lane(teacher, None, clients[0], None, self._options.policy, stack)]
        else:
            lanes = [
                _lane(teacher, address, client, limits.get((teacher.name, address)), self._options.policy, stack)
                for address, client in zip(teacher.endpoints, clients, strict=True)
            ]
        pool = TeacherPool(
            lanes,
            Listener(answered, failed, self._commit),
            timeout=None if local else teacher.timeout,
            policy=self._options.policy,
            purse=Purse(self._budget, teacher),
            hedge_after=teacher.hedge_after,
        )
        tally.in_flight = lambda: pool.in_flight
        self._pools[teacher.name], self._tallies[teacher.name] = pool, tally
        self._missing[teacher.name] = missing

    async def go(self, jobs: Sequence[Iterator[Job]], ahead: Callable[[], object]) -> None:
        """Runs all teachers until each has finished."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = group.create_task(self._beside(ahead))
                await asyncio.wait(
                    [
                        group.create_task(self._one(asked, own))
                        for asked, own in zip(self._plan.asked, jobs, strict=True)
                    ]
                )
                beside.cancel()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None

    async def _beside(self, ahead: Callable[[], object]) -> None:
        """Calls `ahead` regularly, while the loop is not busy."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _AHEAD_EVERY
            await asyncio.sleep(_AHEAD_EVERY)
            if loop.time() - due < _AHEAD_EVERY / 2:
                ahead()

    def drain(self, interrupt: Interrupt) -> None:
        """Stops sending requests; those in flight may finish."""
        count = sum(pool.in_flight for pool in self._pools.values())
        again = "A second one stops at once." if interrupt.terminated else "Press it again to stop at once."
        say(f"{interrupt.name}: waiting for {count} requests in flight. {again}")
        for pool in self._pools.values():
            pool.stop("the run was interrupted")

    def report(self, interrupted: bool, told: bool) -> None:
        """Reports missing answers, and after an interrupt each teacher's counters unless they are shown anyway."""
        if interrupted:
            did = [] if told else self._tallies.values()
            say("Interrupted. The answers so far are in the ledger; run again to resume.", *did)
        for name, tally in self._tallies.items():
            missing = tally.total - tally.found - tally.answered
            if missing and not interrupted:
                _log.warning("teacher %s: %d of %d rows have no answer", tame(name), missing, tally.total)

    def _commit(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, []
            self._claims.keep(kept, self._budget.written())

    async def _one(self, asked: Asked, jobs: Iterator[Job]) -> None:
        pool, name, missing = self._pools[asked.name], asked.name, self._missing[asked.name]
        handed: list[int] = []
        while True:
            await pool.run(jobs)
            while late := await missing.wait(lambda: pool.down is not None or pool.stopped is not None):
                await pool.run(iter(late))
            missing.leave()
            if pool.down is not None or pool.stopped is not None:
                self._plan.left[name] = pool.stopped or f"the teacher is down: {pool.down}"
                if self._exchange is not None:
                    handed += await self._exchange.leave(name)
                    if pool.stopped is None and asked.teacher.on_teacher_down == "reroute":
                        await self._hand_on(asked, [*self._plan.rows(asked), *handed])
                return
            rows = [] if self._exchange is None else await self._exchange.take(name)
            if not rows:
                return
            handed += rows
            self._tallies[name].total += len(rows)
            jobs = missing.draw(self._plan.jobs(asked, rows))

    async def _hand_on(self, asked: Asked, rows: Sequence[int]) -> None:
        """Hands the unanswered rows of a teacher that is down over to the next best teachers."""
        assert self._exchange is not None
        unanswered: list[int] = []
        for row, job in zip(rows, self._plan.jobs(asked, rows), strict=True):
            if job.key not in self._plan.errors and not self._ledger.get_many([job.key]):
                unanswered.append(row)
        taken = []
        for row, name in self._plan.next_best(unanswered, self._exchange.gone):
            if name is not None:
                self._plan.rerouted[row] = name
                taken.append((row, name))
        self._tallies[asked.name].total -= len(taken)
        _log.warning(
            "teacher %s is down: %d of its rows go to the next best teachers of `route_scores`, %d to none",
            tame(asked.name),
            len(taken),
            len(unanswered) - len(taken),
        )
        await self._exchange.hand(taken)


def _lane(
    teacher: Teacher,
    address: str | None,
    client: TeacherClient,
    limits: EndpointLimits | None,
    policy: RetryPolicy,
    stack: AsyncExitStack,
) -> Lane:
    patient = teacher.on_teacher_down == "wait"
    if teacher.down_after is not None:
        policy = replace(policy, down_after=teacher.down_after)
    if address is None:
        return Lane(client, AdaptiveLimit(teacher.batch_size * _BATCHES_AHEAD, watch_latency=False), policy)
    if limits is not None and isinstance(client, ChatClient):
        client.adapt(limits.served_model, limits.no_whole_top_p)
    known = teacher.max_concurrency or (limits.max_concurrency if limits is not None else None)
    share = server(address).join(known)
    stack.callback(share.close)
    return Lane(client, share, policy, patient=patient, spaced=True)


def _clients(plan: Plan) -> list[list[TeacherClient]]:
    """Creates a client for every endpoint of every teacher; local teachers with the same model share one."""

    def kind(asked: Asked) -> tuple[str, str, str | None]:
        return asked.revision, asked.teacher.dtype, asked.teacher.device

    local = [asked for asked in plan.asked if asked.teacher.backend == "local"]
    shared = {
        kind(asked): _LocalClient([other.teacher for other in local if kind(other) == kind(asked)], asked.revision)
        for asked in local
    }
    return [
        [shared[kind(asked)]]
        if asked.teacher.backend == "local"
        else [endpoint_client(asked.teacher, address) for address in asked.teacher.endpoints]
        for asked in plan.asked
    ]


class _LocalClient:
    """Loads torch and the model with the first request, so that a rerun without requests is quick."""

    def __init__(self, teachers: Sequence[Teacher], identity: str) -> None:
        self._teachers, self._identity = teachers, identity
        self._batcher: TeacherClient | None = None

    async def complete(self, request: Request) -> Completion:
        if self._batcher is None:
            require("run a teacher with `backend: local`", "torch", "transformers")
            from persyn_hf.generation.local import LocalBatcher

            self._batcher = LocalBatcher(self._teachers, self._identity)
        return await self._batcher.complete(request)

    async def aclose(self) -> None:
        if self._batcher is not None:
            await self._batcher.aclose()


def endpoint_client(teacher: Teacher, address: str) -> TeacherClient:
    """Creates a client for one endpoint of a teacher.

    Args:
        teacher (`Teacher`): Teacher with `backend: endpoint`.
        address (`str`): One of `teacher.endpoints`.

    Raises:
        ConfigError: If the teacher needs a key and it is missing.
    """
    return (TgiClient if teacher.api == "tgi" else ChatClient)(teacher, address)
