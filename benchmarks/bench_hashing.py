"""Benchmarks of the hashes of ids and strings."""
