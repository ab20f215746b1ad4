"""The ledger: answers and scores that were paid for, who is at work on which, and what all of it costs."""
