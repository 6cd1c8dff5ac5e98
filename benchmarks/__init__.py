"""Microbenchmarks, one module per op family. ``python -m lirank_ext bench`` runs them."""
