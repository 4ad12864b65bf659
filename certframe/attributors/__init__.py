"""attributors of certframe."""
