"""metrics of certframe."""
