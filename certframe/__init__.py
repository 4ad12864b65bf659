"""certframe."""
