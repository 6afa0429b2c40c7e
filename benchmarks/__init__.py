"""Benchmarks of a checkout: `python -m benchmarks NAME`. Not part of the installed library."""

import os

# Before NumPy is loaded: idle BLAS threads spin, and their time would count as that of whoever multiplied last.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
