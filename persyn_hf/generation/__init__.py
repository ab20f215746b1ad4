"""Generation: ask every teacher for what it must answer, pay for no answer twice, lose none."""
