"""Allocation: routes for a whole set of prompts from scores, within share, budget and time limits."""
