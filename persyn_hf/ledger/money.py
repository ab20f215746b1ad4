"""Money: what all that use a ledger may spend together, and what of it is set aside for requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from persyn_hf.ledger.claims import Claims

_LIMIT = "`max_cost`"
#: Seconds after which money that other processes hold is looked for again.
_LOOK = 0.25


def is_out_of_money(error: str | None) -> bool:
    """Whether a row was not asked because of [`Budget.exceeded`]: there is no answer, and none was tried for."""
    return error is not None and error.startswith(f"{_LIMIT} (")


class Budget:
    """What the answers and scores of a ledger may cost, shared by all that are asked.

    Before a request is sent its worst case is set aside, in the ledger, where other processes count it too; when the
    answer is there, the rest of that is free again. So the sum never passes the limit, and towards the end fewer
    requests run at once.

    Args:
        limit (`float`, *optional*): USD; `None` is no limit.
        claims (`Claims`): The run's part in the ledger.
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
        """Calls `changed` whenever money may be free again."""
        self._watchers.append(changed)

    def hold(self, amount: float) -> bool:
        """Sets an amount aside, if it fits."""
        if self.limit is not None and not self._claims.reserve(amount, self.limit):
            self._others = self._claims.others_reserve()
            if self._others:
                self._look_again()
            return False
        self.reserved += amount
        self._holds += 1
        return True

    def paid(self, held: float, cost: float) -> None:
        """A request has been answered; its cost stays set aside until the ledger has the answer."""
        self._holds -= 1
        self.reserved += cost - held
        self._kept += cost
        self._changed()

    def failed(self, held: float, lost: float) -> None:
        """A request has not been answered, and may have cost so much all the same."""
        self._holds -= 1
        self.reserved -= held
        if self.limit is not None or lost:
            self._claims.settle(lost, self.in_ledger)
        self._changed()

    def written(self) -> float:
        """What is to be set aside once the ledger has all answers that were paid: what is in flight."""
        self.reserved -= self._kept
        self._kept = 0.0
        if not self._holds:
            self.reserved = 0.0
        return self.in_ledger

    @property
    def in_ledger(self) -> float:
        """What is set aside in the ledger: nothing where there is no limit to keep."""
        return 0.0 if self.limit is None else max(0.0, self.reserved)

    @property
    def idle(self) -> bool:
        """Whether nobody has anything set aside: what does not fit now never will."""
        return self._holds == 0 and not self._others

    @property
    def exceeded(self) -> str:
        """Why nothing more is asked, once that is so."""
        return f"{_LIMIT} ({self.limit:g} USD) would have been passed"

    def _changed(self) -> None:
        if self.limit is not None:
            for changed in self._watchers:
                changed()

    def _look_again(self) -> None:
        """Tells the watchers in a moment: other processes do not say when they give money back."""
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK, self._looked)

    def _looked(self) -> None:
        self._look = None
        self._changed()
