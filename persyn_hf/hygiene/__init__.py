"""Which prompts and answers leave a set, and why: duplicates, benchmarks' own texts, lengths, refusals, copies."""
