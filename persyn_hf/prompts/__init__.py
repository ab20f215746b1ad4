"""Prompts: their sources and formats, and the table that all stages share."""

from persyn_hf.prompts.reading import load_prompts

__all__ = ["load_prompts"]
