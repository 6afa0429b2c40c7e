"""The model (logistic regression) and the data (scikit-learn's breast cancer records, dealt out to hospitals)."""

import numpy as np
from sklearn.datasets import load_breast_cancer

# Scales of the 30 measurements, from the ranges that the data set's description publishes. They must be public: a mean
# or a maximum that is computed over the hospitals' records would leak what training then protects.
MEAN_SCALES = [30, 40, 200, 2500, 0.2, 0.4, 0.5, 0.25, 0.4, 0.1]
ERROR_SCALES = [3, 5, 25, 600, 0.04, 0.15, 0.4, 0.06, 0.1, 0.04]
WORST_SCALES = [40, 50, 300, 5000, 0.3, 1.2, 1.5, 0.3, 0.7, 0.25]
SCALES = np.array([*MEAN_SCALES, *ERROR_SCALES, *WORST_SCALES])


def initial_model():
    return {"weights": np.zeros(30), "bias": np.zeros(1)}


def load_data():
    """Features in [-1, 1], labels, and which records are held out for testing."""
    data = load_breast_cancer()
    return np.clip(data.data / SCALES, 0, 1) * 2 - 1, data.target, np.arange(len(data.target)) % 4 == 3


def load_hospital(number, hospitals):
    """The records of one hospital."""
    features, labels, held_out = load_data()
    own = np.flatnonzero(~held_out)[number::hospitals]
    return features[own], labels[own]


def predict(model, features):
    return 1 / (1 + np.exp(-(features @ model["weights"] + model["bias"])))


def fit(model, features, labels, steps, learning_rate):
    """Plain gradient descent; gives the new model and the mean loss of the old one."""
    loss = np.mean(-np.log(np.where(labels == 1, predict(model, features), 1 - predict(model, features)) + 1e-9))
    weights, bias = model["weights"].copy(), model["bias"].copy()
    for _ in range(steps):
        error = predict({"weights": weights, "bias": bias}, features) - labels
        weights -= learning_rate * features.T @ error / len(labels)
        bias -= learning_rate * error.mean()
    return {"weights": weights, "bias": bias}, float(loss)


def accuracy(model):
    """On the held-out records."""
    features, labels, held_out = load_data()
    return float(np.mean((predict(model, features[held_out]) > 0.5) == labels[held_out]))
