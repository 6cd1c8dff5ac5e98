"""Benchmarks of isotonic calibration."""
