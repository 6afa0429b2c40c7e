"""Real data for demonstrations and benchmarks, from installed packages alone.

Hospitals (`load_thyroid`, `load_health_insurance`, `load_breast_cancer`), intrusion (`load_intrusion`), telemetry
(`load_telemetry`) and pictures (`load_digits`, `load_mnist`); `split` and `dirichlet_partition` deal examples out.
"""

from .core import Dataset, DatasetError, dirichlet_partition, load_digits, split
from .real import (
    INTRUSIONS,
    installed,
    load_breast_cancer,
    load_health_insurance,
    load_intrusion,
    load_mnist,
    load_telemetry,
    load_thyroid,
)

__all__ = [
    "INTRUSIONS",
    "Dataset",
    "DatasetError",
    "dirichlet_partition",
    "installed",
    "load_breast_cancer",
    "load_digits",
    "load_health_insurance",
    "load_intrusion",
    "load_mnist",
    "load_telemetry",
    "load_thyroid",
    "split",
]
