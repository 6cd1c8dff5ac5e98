"""What a machine with a GPU is asked in five minutes: correctness and time of every op.

``drive`` starts one process an op (``worker``), each on the shapes of ``targets``, and keeps a
JSON line for every reading. ``kit`` prepares a folder that spares such a machine all compiling.
``benchmarks/gpu.sh`` is the way to start it.
"""
