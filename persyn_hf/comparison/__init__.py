"""Comparison of policies: their training sets, the students trained on them, and the students' evaluation."""
