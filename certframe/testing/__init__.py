"""testing of certframe."""
