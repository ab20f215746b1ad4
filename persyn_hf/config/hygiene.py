"""Filters on prompts before generation and on answers before publication."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings, Unit

#: In `decontaminate`: the held-out prompts and benchmarks of the section `compare`.
COMPARED = "compare"


class Hygiene(Settings):
    """Filters on prompts before generation and on answers before publication. Every dropped row is counted.

    Args:
        dedup (`"exact"`, `"near"` or `None`, defaults to `"exact"`): Prompts to drop: copies of an earlier prompt
            (`exact`), or near-duplicates too (`near`). With `None` a repeated prompt is an error.
        dedup_threshold (`float`, defaults to 0.8): Similarity at which two prompts are near-duplicates: Jaccard
            similarity of their word 3-grams, or cosine similarity with a `dedup_model`.
        dedup_model (`str`, *optional*): Folder or Hub id of a model2vec model. semhash then compares embeddings
            instead of words (the extra `semhash`).
        decontaminate (`tuple[str, ...]`): Files and datasets with benchmark texts; prompts that overlap with one are
            dropped. `compare` stands for the held-out prompts and the lm-eval tasks of the section `compare`.
        decontaminate_column (`str`, *optional*): Text column of those files. Default: detected, like the prompts'
            column.
        ngram_size (`int`, defaults to 13): Number of consecutive words that a prompt must share with a benchmark text
            to be contaminated. A shorter benchmark text must occur in the prompt as a whole.
        min_tokens, max_tokens (`int`, *optional*): Minimum and maximum length of a prompt, in the student's tokens.
        drop_refusals (`bool`, defaults to `False`): Whether to drop answers that refuse the request.
        max_copied (`float`, *optional*): Maximum share of an answer's words that are copied from its prompt, 0 to 1.
        min_quality (`float`, *optional*): Minimum quality of a published answer. Answers outside the probe are scored
            for this filter.
    """

    #: These fields decide the set of prompts, before any stage.
    unkeyed: ClassVar[frozenset[str]] = frozenset(
        {
            "dedup",
            "dedup_threshold",
            "dedup_model",
            "decontaminate",
            "decontaminate_column",
            "ngram_size",
            "min_tokens",
            "max_tokens",
        }
    )

    dedup: Literal["exact", "near"] | None = "exact"
    dedup_threshold: float = Field(0.8, gt=0, le=1)
    dedup_model: str | None = None
    decontaminate: tuple[str, ...] = ()
    decontaminate_column: str | None = None
    ngram_size: int = Field(13, ge=2)
    min_tokens: Annotated[int | None, Unit("tokens")] = Field(None, ge=1)
    max_tokens: Annotated[int | None, Unit("tokens")] = Field(None, ge=1)
    drop_refusals: bool = False
    max_copied: float | None = Field(None, gt=0, le=1)
    min_quality: float | None = Field(None, allow_inf_nan=False)

    @property
    def cleans_answers(self) -> bool:
        """True if any filter on answers is set."""
        return self.drop_refusals or self.max_copied is not None or self.min_quality is not None

    @model_validator(mode="after")
    def _in_order(self) -> Hygiene:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"`min_tokens` ({self.min_tokens}) is above `max_tokens` ({self.max_tokens})")
        if self.dedup_model is not None and self.dedup != "near":
            raise ValueError("`dedup_model` needs `dedup: near`")
        return self
