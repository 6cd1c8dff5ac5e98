"""Triton kernels and their launchers; nothing is imported here."""
