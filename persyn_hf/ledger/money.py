"""The budget of a ledger: the limit that all runs share, and the amounts reserved for requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from persyn_hf.ledger.claims import Claims

_LIMIT = "`max_cost`"
#: Seconds after which money that other processes hold is looked for again.
_LOOK = 0.25


def is_out_of_money(error: str | None) -> bool:
    """Returns whether a row was not requested because of [`Budget.exceeded`], so that it has no answer."""
    return error is not None and error.startswith(f"{_LIMIT} (")


class Budget:
    """Limit on the cost of all answers and scores of a ledger, shared by all teachers, judges and runs.

    The worst-case cost of a request is reserved in the ledger before it is sent, where other processes count it too;
    when the answer arrives, the unused part is released. The total therefore never exceeds the limit, and fewer
    requests run in parallel towards the end.

    Args:
        limit (`float`, *optional*): Limit in USD; `None` for no limit.
        claims (`Claims`): Claims of the run in the ledger.
    """

    def __init__(self, limit: float | None, claims: Claims) -> None:
        self.limit = limit
        self.reserved = 0.0
        self._claims = claims
        self._holds = 0
        self._others = False
        self._kept = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._watchers: list[Callable[[], None]] = []

    def watch(self, changed: Callable[[], None]) -> None:
        """Registers a callback for whenever money may be available again."""
        self._watchers.append(changed)

    def hold(self, amount: float) -> bool:
        """Reserves an amount, if it fits; returns whether it did."""
        if self.limit is not None and not self._claims.reserve(amount, self.limit):
            self._others = self._claims.others_reserve()
            if self._others:
                self._look_again()
            return False
        self.reserved += amount
        self._holds += 1
        return True

    def paid(self, held: float, cost: float) -> None:
        """Records the cost of an answered request; it stays reserved until the ledger has the answer."""
        self._holds -= 1
        self.reserved += cost - held
        self._kept += cost
        self._changed()

    def failed(self, held: float, lost: float) -> None:
        """Releases the reservation of a failed request, and records `lost`, which it may have cost."""
        self._holds -= 1
        self.reserved -= held
        if self.limit is not None or lost:
            self._claims.settle(lost, self.in_ledger)
        self._changed()

    def written(self) -> float:
        """Returns the amount to reserve once the ledger has all paid answers: that of the requests in flight."""
        self.reserved -= self._kept
        self._kept = 0.0
        if not self._holds:
            self.reserved = 0.0
        return self.in_ledger

    @property
    def in_ledger(self) -> float:
        """Amount reserved in the ledger, in USD; 0 without a limit."""
        return 0.0 if self.limit is None else max(0.0, self.reserved)

    @property
    def idle(self) -> bool:
        """`True` if nothing is reserved, so that an amount that does not fit now never will."""
        return self._holds == 0 and not self._others

    @property
    def exceeded(self) -> str:
        """The reason that requests stopped, if they did."""
        return f"{_LIMIT} ({self.limit:g} USD) would have been exceeded"

    def _changed(self) -> None:
        if self.limit is not None:
            for changed in self._watchers:
                changed()

    def _look_again(self) -> None:
        """Schedules a call of the watchers: other processes do not notify this one when they release money."""
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK, self._looked)

    def _looked(self) -> None:
        self._look = None
        self._changed()
