"""Where prompts come from, and which of them are the probe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from persyn_hf.config.settings import Settings


class Prompts(Settings):
    """Where prompts come from.

    Args:
        source (`str`): A `.jsonl`, `.json`, `.csv` or `.parquet` file, a folder of `save_to_disk`, or a Hub dataset.
        revision (`str`, *optional*): Commit, tag or branch of a Hub dataset.
        config (`str`, *optional*): Configuration of a Hub dataset.
        split (`str`, defaults to `"train"`): Split of a Hub dataset.
        column (`str`, defaults to `"prompt"`): The prompt column: strings or chat messages.
        answer_column (`str`, *optional*): The reference that verifiers read.
        limit (`int`, *optional*): Use only the first rows.
        on_bad_prompt (`"error"` or `"drop"`, defaults to `"error"`): What becomes of a prompt that is empty, that a
            teacher, the student or the reward model cannot read (too long, refused by its chat template), or whose
            reference the verifier cannot read: the run stops before it asks anything, or leaves the prompt out and
            counts it in its report.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    answer_column: str | None = None
    limit: int | None = Field(None, ge=1)
    on_bad_prompt: Literal["error", "drop"] = "error"


class Probe(Settings):
    """The prompts that every teacher answers.

    Args:
        size (`int`, defaults to 2500): How many; the paper's number.
        method (`"random"` or `"cover"`, defaults to `"random"`): Drawn at random, or chosen so that every prompt has
            one of them near it, among the embeddings of the router's backbone.
    """

    size: int = Field(2500, ge=2)
    method: Literal["random", "cover"] = "random"
