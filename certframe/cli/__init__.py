"""cli of certframe."""
