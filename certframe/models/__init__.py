"""models of certframe."""
