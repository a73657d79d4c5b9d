"""Slow textbook versions of what the package computes, to compare it with."""
