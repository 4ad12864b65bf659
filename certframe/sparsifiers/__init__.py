"""sparsifiers of certframe."""
