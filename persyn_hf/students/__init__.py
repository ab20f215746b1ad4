"""Students: supervised fine-tuning with TRL."""
