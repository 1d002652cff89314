"""Operators in C++ for the CPU, with fallbacks in torch."""
