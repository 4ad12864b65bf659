"""datasets of certframe."""
