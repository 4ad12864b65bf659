"""Tests, corrections and bounds: pure functions on integers and float64, with the theorem each implements."""
