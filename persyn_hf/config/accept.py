"""When an answer is good enough, and what is asked where it is not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persyn_hf.config.settings import Settings


class Accept(Settings):
    """When an answer is good enough, and what is asked where it is not.

    An answer that is missing, cut or below `min_quality` is asked for again, until one passes or `attempts` are used
    up. Every attempt is kept in the ledger and in the table; the published set holds the accepted answers.

    Args:
        min_quality (`float`): Smallest quality of an accepted answer: 1.0 with a verifier that gives 0 or 1.
        attempts (`int`, defaults to 3): Most answers of one prompt.
        retry (`"next"` or `"same"`, defaults to `"next"`): Whom the next attempt asks: the router's next teacher, or
            the same teacher with another seed.
        target_rows (`int`, *optional*): Accepted answers at which the run stops. Prompts are asked in their order.
    """

    min_quality: float = Field(allow_inf_nan=False)
    attempts: int = Field(3, ge=1)
    retry: Literal["next", "same"] = "next"
    target_rows: int | None = Field(None, ge=1)
