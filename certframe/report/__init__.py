"""report of certframe."""
