"""The comparison: every policy's training set, the students trained on them, and how they fare."""
