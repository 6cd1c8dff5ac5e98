"""The paper's ablations on public data: ``python -m lirank_ext.benchmarks.study``.

MovieLens-1M and UCI Adult train one model per variant and seed; the Open Bandit logs weigh a
Thompson policy. Every finished run is one small file, so that a study that was stopped goes on
where it was; the report puts the measured signs beside the paper's.
"""
