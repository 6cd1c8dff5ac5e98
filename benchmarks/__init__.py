"""Microbenchmarks, one module per op family; run by ``python -m lirank_ext bench``."""
