"""The ledger: paid answers and scores, the rows that each run works on, and their cost."""
