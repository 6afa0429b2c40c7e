"""Benchmarks of a checkout: `python -m benchmarks NAME`. Not part of the installed library."""
