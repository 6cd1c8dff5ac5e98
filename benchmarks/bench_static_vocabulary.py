"""Benchmarks of static vocabularies."""
