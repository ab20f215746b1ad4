"""Allocation of teachers to the prompts of the whole set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from persyn_hf.config.policies import CAR_BETA, MIX_STRONG_SHARE, AllocationPolicy, Policy
from persyn_hf.config.settings import Settings


class PolicyOptions(Settings):
    """Constants of the baseline policies.

    Args:
        strong_share (`float`, defaults to 0.5): Share of the prompts that `mix` sends to the strong teacher, 0 to 1.
        beta (`float`, defaults to 3): Weight of the student's loss in `car` (arXiv 2411.07133).
    """

    strong_share: float = Field(MIX_STRONG_SHARE, ge=0, le=1)
    beta: float = Field(CAR_BETA, ge=0)


class AllocationOptions(PolicyOptions):
    """Options of [`allocate`], which assigns teachers to the whole set.

    Args:
        policy (defaults to `"persyn"`): The router, or a baseline: see [`policy_scores`].
        max_share, min_share (`float` or mapping by teacher, *optional*): Largest and smallest share of the prompts
            that a teacher answers, 0 to 1.
        budget (`float`, *optional*): Maximum cost of all answers, in USD.
        makespan (`float` or `"shortest"`, *optional*): Maximum time of the slowest teacher, in seconds. `"shortest"`
            minimises it within the other limits.
        top_k (`int`, defaults to 1): Number of teachers for each prompt. Their answers are scored and the best is
            kept.
        temperature (`float`, defaults to 0): Scale of the Gumbel noise that is added to the scores, for diversity.
            Without limits this samples teachers from `softmax(scores / temperature)`; limits always hold.
        scale (defaults to `"bradley-terry"`): Quantity that is summed: the scores, the expected share of teachers
            beaten (`"win-rate"`), or scores that are expected rewards (`"reward"`).
        student_family (`str`, *optional*): The student's model family, for `family-strong`.
    """

    policy: Policy = "persyn"
    max_share: float | dict[str, float] | None = None
    min_share: float | dict[str, float] | None = None
    budget: float | None = Field(None, ge=0)
    makespan: float | Literal["shortest"] | None = None
    top_k: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    scale: Literal["bradley-terry", "win-rate", "reward"] = "bradley-terry"
    student_family: str | None = None

    @field_validator("max_share", "min_share", mode="before")
    @classmethod
    def _shares(cls, value: object) -> object:
        return _by_teacher(value)


class Allocation(AllocationOptions):
    """Allocation of teachers to the whole set. By default every prompt goes to the teacher with the best score.

    Args:
        policy (defaults to `"persyn"`): The router, or a baseline that is fitted on the scored probe.
        max_share (`float` or mapping by teacher, *optional*): Largest share of the prompts that a teacher answers,
            0 to 1.
        min_share (`float` or mapping by teacher, *optional*): Smallest share of the prompts that a teacher answers,
            0 to 1.
        budget (`float`, *optional*): Maximum cost of the routed answers in USD, estimated from the teachers' prices
            and expected tokens.
        makespan (`float` or `"shortest"`, *optional*): Maximum time of the slowest teacher, in seconds. `"shortest"`
            minimises it within the other limits.
        expected_tokens (`float` or mapping by teacher, *optional*): Mean tokens of an answer. Default: the mean of the
            teacher's probe answers, or its `max_tokens` without a probe.
        prompt_tokens (`float`, *optional*): Mean tokens of a prompt. Default: the mean over the probe, or characters
            divided by 4 without a probe.
        tokens_per_second (`float` or mapping by teacher, defaults to 50): Speed of one request, for `makespan`.
        top_k (`int`, defaults to 1): Number of teachers for each prompt. Their answers are scored and the best is
            kept.
        temperature (`float`, defaults to 0): Scale of the noise that is added to the scores, for diversity.
        scale (defaults to `"bradley-terry"`): Quantity that is summed: the scores, or the expected share of teachers
            beaten.
        strong_share (`float`, defaults to 0.5): Share of the prompts that `mix` sends to the strong teacher, 0 to 1.
        beta (`float`, defaults to 3): Weight of the student's loss in `car` (arXiv 2411.07133).
        student_family (`str`, *optional*): The student's model family, spelled as in the teachers' `family`, for
            `family-strong`.
    """

    policy: AllocationPolicy = "persyn"
    expected_tokens: float | dict[str, float] | None = None
    prompt_tokens: float | None = Field(None, ge=0)
    tokens_per_second: float | dict[str, float] = 50.0
    scale: Literal["bradley-terry", "win-rate"] = "bradley-terry"

    @property
    def active(self) -> bool:
        """True if any option differs from the default, which sends every prompt to the best score."""
        return self != Allocation()

    @field_validator("expected_tokens", "tokens_per_second", mode="before")
    @classmethod
    def _number_or_mapping(cls, value: object) -> object:
        return _by_teacher(value)

    @field_validator("max_share", "min_share")
    @classmethod
    def _at_most_all(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for number in value.values() if isinstance(value, dict) else [value]:
            if number is not None and number > 1:
                raise ValueError(f"a share must be between 0 and 1, got {number:g}")
        return value

    @model_validator(mode="after")
    def _family_is_named(self) -> Allocation:
        if self.policy == "family-strong" and self.student_family is None:
            raise ValueError("`policy: family-strong` needs `student_family`, spelled as in the teachers' `family`")
        return self

    @property
    def names(self) -> set[str]:
        """Names of the teachers in the mappings."""
        named = (self.max_share, self.min_share, self.expected_tokens, self.tokens_per_second)
        return {name for value in named if isinstance(value, dict) for name in value}


def _by_teacher(value: object) -> object:
    for number in value.values() if isinstance(value, dict) else [value]:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float) or number < 0):
            raise ValueError("must be a non-negative number, or a mapping of teacher names to non-negative numbers")
    return value
