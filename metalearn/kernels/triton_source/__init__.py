"""Kernels written in Triton, imported where there is Triton alone (kernels/launch.py)."""
