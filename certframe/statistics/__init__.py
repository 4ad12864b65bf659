"""statistics of certframe."""
