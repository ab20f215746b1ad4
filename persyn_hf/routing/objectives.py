"""What a router is trained to do. Losses take scores and rewards of whole prompts, missing teachers masked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Objective = Literal["bradley-terry", "bradley-terry-margin", "expected-reward", "regression"]
OBJECTIVES: tuple[Objective, ...] = ("bradley-terry", "bradley-terry-margin", "expected-reward", "regression")


def bradley_terry_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None, margin: bool = False) -> Tensor:
    """Mean of `−log σ(s_win − s_lose)` over the pairs of teachers of one prompt (PerSyn, arXiv 2510.10925, eq. 3).

    Two teachers of equal reward make no pair, and neither does a teacher without a reward.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never do.
        margin (`bool`, defaults to `False`): Weight each pair by its difference in reward, so that a near-tie counts
            for little.

    Returns:
        `Tensor`: A scalar, 0 where there is no pair.
    """
    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    difference = filled[:, :, None] - filled[:, None, :]
    pair = (difference > 0) & known[:, :, None] & known[:, None, :]
    weight = torch.where(pair, difference if margin else torch.ones_like(difference), 0.0).to(scores.dtype)
    losses = softplus(-(scores[:, :, None] - scores[:, None, :]))
    return (losses * weight).sum() / weight.sum().clamp_min(torch.finfo(scores.dtype).tiny)


def expected_reward_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Mean over prompts of `−Σ_i softmax(s / τ)_i · r_i`: the reward of a teacher drawn from the softmax, negated.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never do.
        tau (`float`, defaults to 1.0): Temperature, > 0. Small: closer to what `argmax` earns; large: smoother.

    Returns:
        `Tensor`: A scalar.
    """
    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    some = known.any(dim=1)
    logits = (scores / tau).masked_fill(~known, float("-inf"))[some]
    return -(logits.softmax(dim=1) * filled[some]).sum(dim=1).mean()


def regression_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the scores as estimates of the rewards; missing rewards are left out."""
    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    error = torch.where(known, scores - rewards.nan_to_num(), torch.zeros_like(scores))
    return error.square().sum() / known.sum().clamp_min(1)


def objective_loss(objective: str, scores: Tensor, rewards: Tensor, tau: float = 1.0) -> Tensor:
    """The loss of a named objective.

    Raises:
        ValueError: If the name is none of `OBJECTIVES`.
    """
    if objective == "bradley-terry":
        return bradley_terry_loss(scores, rewards)
    if objective == "bradley-terry-margin":
        return bradley_terry_loss(scores, rewards, margin=True)
    if objective == "expected-reward":
        return expected_reward_loss(scores, rewards, tau=tau)
    if objective == "regression":
        return regression_loss(scores, rewards)
    raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
