"""Where prompts come from: sources, shapes, and the table that all stages share."""

from persyn_hf.prompts.reading import load_prompts

__all__ = ["load_prompts"]
