"""Fused operations, each with its maths, its reference and its backends in one file."""
