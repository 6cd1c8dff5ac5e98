"""How well ``train`` ranks with its defaults, beside tuned models of the field, on public data.

``python -m lirank_ext.benchmarks.quality --output DIR`` writes a table and the figures behind it.
"""
