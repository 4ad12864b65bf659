"""Verified perturbation analysis for certframe. Imports nothing heavy, as every hook module should."""
