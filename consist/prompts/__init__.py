"""What prompts say: the words that name a subject, one prompt for all, and packs."""
