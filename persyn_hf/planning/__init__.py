"""What a run will cost, before its first request; and, after it, how far off that was."""
