"""FBGEMM's inference kernels as a peer: cut to one architecture, carried and loaded alone."""
