"""Scoring: how good an answer is (quality), how learnable it is for a student (learnability), and both as a reward."""
