"""Generation: collects the teachers' answers, pays for no answer twice and loses none."""
