"""Scoring: the quality of an answer, its learnability for a student, and the reward that mixes both."""
