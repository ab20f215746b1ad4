"""The source of the prompts, and the choice of the probe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings

#: Prompt formats of a table; `auto` detects the format.
PromptFormat = Literal["auto", "text", "messages", "sharegpt", "alpaca", "qa", "preference"]
_Named = Annotated[str, Field(min_length=1)]


class Prompts(Settings):
    """Source and format of the prompts.

    Args:
        source (`str` or list of `str`): Files (`.jsonl`, `.json`, `.csv`, `.tsv`, `.txt` or `.parquet`, optionally
            compressed as `.gz`, `.bz2`, `.xz` or `.zst`), a pattern with `*`, a folder of files, a folder written by
            `save_to_disk`, or a Hub dataset.
        revision (`str`, *optional*): Commit, tag or branch of a Hub dataset.
        config (`str`, *optional*): Configuration of a Hub dataset or of a folder.
        split (`str`, defaults to `"train"`): Split of a Hub dataset or of a folder.
        format (`str`, defaults to `"auto"`): Format of the prompts: `text`, `messages` (role and content), `sharegpt`
            (from and value), `alpaca` (instruction and input), `qa` (question and answer) or `preference` (prompt,
            chosen, rejected). `auto` detects the format from the columns and reports it; if two formats fit, it is an
            error.
        column (`str`, *optional*): Column of the prompts. Default: `prompt`, or the column of the format.
        template (`str`, *optional*): Jinja template that renders the prompt from a row's columns, instead of `column`.
        system_column (`str`, *optional*): Column of the system messages. Default: `system` for ShareGPT and Alpaca.
        tools_column (`str`, *optional*): Column of the tools. Default: `tools`, if it holds functions.
        answer_column (`str`, *optional*): Column of the reference answers for verifiers. Default: `answer`, if it
            exists.
        last_assistant (`"drop"`, `"reference"` or `"error"`, defaults to `"drop"`): Treatment of an answer at the end
            of a conversation: dropped and counted, kept as the reference, or an error.
        keep_columns (list of `str`, *optional*): Other columns to keep beside the prompts. Default: all.
        limit (`int`, *optional*): Number of rows to use, from the first. Default: all.
        on_bad_prompt (`"error"` or `"drop"`, defaults to `"error"`): Treatment of a bad prompt: the run stops before
            it sends any request, or drops the prompt and counts it in the report. A prompt is bad if it is empty, if a
            teacher, the student or the reward model cannot read it (too long, rejected by the chat template), or if
            the verifier cannot read its reference.
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
            raise ValueError("`column` and `template` both define the prompt; give one of them")
        if self.answer_column is not None and self.last_assistant == "reference":
            raise ValueError(
                "`answer_column` and `last_assistant: reference` both define the reference; give one of them"
            )
        return self


class Probe(Settings):
    """The prompts that every teacher answers.

    Args:
        size (`int`, defaults to 2500): Number of prompts; the default is the paper's.
        method (`"random"` or `"cover"`, defaults to `"random"`): Selection: a random sample, or a cover of the set in
            the embedding space of the router's backbone, so that every prompt is near a probe prompt.
    """

    size: int = Field(2500, ge=2)
    method: Literal["random", "cover"] = "random"
