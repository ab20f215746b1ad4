"""The demo: prompts, teachers and real weights that need only the package registry."""
