"""The demonstration: prompts, teachers and real weights that need no network but the package registry."""
