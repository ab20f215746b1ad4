"""The `accept` section: acceptance of answers, and retries for those that are not accepted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persyn_hf.config.settings import Settings


class Accept(Settings):
    """Acceptance of answers, and retries for those that are not accepted.

    A prompt whose answer is missing, truncated or below `min_quality` is retried until an answer passes or `attempts`
    is reached. The ledger and the table keep every attempt; the published set holds the accepted answers.

    Args:
        min_quality (`float`): Minimum quality of an accepted answer: 1.0 with a verifier that gives 0 or 1.
        attempts (`int`, defaults to 3): Maximum number of answers to one prompt.
        retry (`"next"` or `"same"`, defaults to `"next"`): Teacher of the next attempt: the router's next choice, or
            the same teacher with another seed.
        target_rows (`int`, *optional*): Number of accepted answers at which the run stops. Prompts are sent in order.
    """

    min_quality: float = Field(allow_inf_nan=False)
    attempts: int = Field(3, ge=1)
    retry: Literal["next", "same"] = "next"
    target_rows: int | None = Field(None, ge=1)
