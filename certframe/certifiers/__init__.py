"""certifiers of certframe."""
