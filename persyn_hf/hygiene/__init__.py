"""Cleaning of prompts and answers: duplicates, contamination, lengths, refusals and copies."""
