"""Where prompts come from, and which of them are the probe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings

#: Shapes of prompts in a table; `auto` finds out.
PromptFormat = Literal["auto", "text", "messages", "sharegpt", "alpaca", "qa", "preference"]
_Named = Annotated[str, Field(min_length=1)]


class Prompts(Settings):
    """Where prompts come from, and how they lie there.

    Args:
        source (`str` or list of `str`): Files (`.jsonl`, `.json`, `.csv`, `.tsv`, `.txt`, `.parquet`, and with `.gz`,
            `.bz2`, `.xz` or `.zst` behind), a pattern with `*`, a folder of files or of `save_to_disk`, or a Hub
            dataset.
        revision (`str`, *optional*): Commit, tag or branch of a Hub dataset.
        config (`str`, *optional*): Configuration of a Hub dataset or of a folder.
        split (`str`, defaults to `"train"`): Split of a Hub dataset or of a folder.
        format (`str`, defaults to `"auto"`): Shape of the prompts: `text`, `messages` (role and content), `sharegpt`
            (from and value), `alpaca` (instruction and input), `qa` (question and answer) or `preference` (prompt,
            chosen, rejected). `auto` looks at the columns, says what it found, and asks where two shapes fit.
        column (`str`, *optional*): The column of the prompts. Default: `prompt`, or the column that the shape names.
        template (`str`, *optional*): A Jinja template over a row's columns that makes the prompt, instead of a column.
        system_column (`str`, *optional*): The column of the system messages. Default: `system` with ShareGPT and
            Alpaca.
        tools_column (`str`, *optional*): The column of the tools. Default: `tools` where it holds functions.
        answer_column (`str`, *optional*): The column of the references that verifiers read. Default: `answer`, if any.
        last_assistant (`"drop"`, `"reference"` or `"error"`, defaults to `"drop"`): Fate of an answer at the end of a
            conversation: left out and counted, kept as the reference, or refused.
        keep_columns (list of `str`, *optional*): The other columns that are kept beside the prompts. Default: all.
        limit (`int`, *optional*): Use only the first rows.
        on_bad_prompt (`"error"` or `"drop"`, defaults to `"error"`): What becomes of a prompt that is empty, that a
            teacher, the student or the reward model cannot read (too long, refused by its chat template), or whose
            reference the verifier cannot read: the run stops before it asks anything, or leaves the prompt out and
            counts it in its report.
    """

    source: _Named | Annotated[tuple[_Named, ...], Field(min_length=1)]
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    format: PromptFormat = "auto"
    column: str | None = None
    template: str | None = None
    system_column: str | None = None
    tools_column: str | None = None
    answer_column: str | None = None
    last_assistant: Literal["drop", "reference", "error"] = "drop"
    keep_columns: tuple[str, ...] | None = None
    limit: int | None = Field(None, ge=1)
    on_bad_prompt: Literal["error", "drop"] = "error"

    @property
    def location(self) -> str:
        """The source as one text, for messages and cards."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.column is not None and self.template is not None:
            raise ValueError("`column` and `template` both say what the prompt is; give one of them")
        if self.answer_column is not None and self.last_assistant == "reference":
            raise ValueError(
                "`answer_column` and `last_assistant: reference` both name the reference; give one of them"
            )
        return self


class Probe(Settings):
    """The prompts that every teacher answers.

    Args:
        size (`int`, defaults to 2500): How many; the paper's number.
        method (`"random"` or `"cover"`, defaults to `"random"`): Drawn at random, or chosen so that every prompt has
            one of them near it, among the embeddings of the router's backbone.
    """

    size: int = Field(2500, ge=2)
    method: Literal["random", "cover"] = "random"
