"""The student, the quality of an answer, and the reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from persyn_hf.config.settings import Dtype, Settings

Alpha = Annotated[float, Field(ge=0.0, le=1.0)]
Normalization = Literal["minmax", "zscore", "rank"]
LearnabilityMetric = Literal["mean-logprob", "rsr"]


class Student(Settings):
    """The student that scores answers (and is trained on them later).

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
        dtype (defaults to `"auto"`), device (*optional*): How it is run for scoring.
        token_budget (`int`, defaults to 8192): Tokens of one forward pass, padding included.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str | None = None
    token_budget: int = Field(8192, ge=1)


class Quality(Settings):
    """How good an answer is. Exactly one of the two is given.

    Args:
        verifier (`str`, *optional*): `math`, `exact`, or `package.module:function` called with
            `(prompt, completion, answer)` and returning a number.
        reward_model (`str`, *optional*): A one-label sequence classifier, Hub id or folder.
        revision (`str`, *optional*): Of the reward model.
    """

    verifier: str | None = None
    reward_model: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Quality:
        if (self.verifier is None) == (self.reward_model is None):
            raise ValueError("give exactly one of `verifier` and `reward_model`")
        return self


class Reward(Settings):
    """How quality and learnability become one reward: `(1 - alpha) * n(quality) + alpha * n(learnability)`."""

    alpha: Alpha = 0.4
    normalization: Normalization = "minmax"
    learnability_metric: LearnabilityMetric = "mean-logprob"
