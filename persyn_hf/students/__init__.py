"""Students: supervised fine-tuning with TRL, and the statistics of comparing them."""
