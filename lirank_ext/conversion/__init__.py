"""Converts models in place: ``swap`` puts in faster modules, ``quantize`` shrinks tables."""
