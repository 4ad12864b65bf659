"""executors of certframe."""
