"""Differential privacy for secure sums: floats in, noised integers out, epsilon kept."""

__secagg_version__ = "0.1.0"
