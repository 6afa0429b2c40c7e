"""Two workers, one sample each, one linear model: the first program of every course on federated learning.

The samples never leave their workers; masks hide each gradient, and the model that comes back is the one that training
on both samples would give. What two workers cannot have is a secret from each other: each subtracts its own gradient
from the sum. The library says so in its statement, and no setting changes it.
"""

import numpy as np

import secagg

samples = {1: (np.array([1.0, 0.5]), 1.0), 2: (np.array([0.0, 1.0]), 0.0)}  # each stays at its worker
model = {"weights": np.zeros(2), "bias": np.zeros(1)}
config = secagg.AggregationConfig.cross_silo(
    like=model, clients=2, max_dropouts=0, max_colluders=0, privacy=secagg.NoPrivacy(clip_norm=10.0)
)
workers = secagg.Simulation(config, clients=samples)


def gradient(worker, at):
    features, target = samples[worker]
    error = features @ at["weights"] + at["bias"] - target
    return {"weights": 2 * error * features, "bias": 2 * error}


for _ in range(30):
    result = workers.round({worker: gradient(worker, model) for worker in samples}, model=model)
    model = {name: value - 0.2 * result.mean[name] for name, value in model.items()}

plain = {"weights": np.zeros(2), "bias": np.zeros(1)}
for _ in range(30):
    both = [gradient(worker, plain) for worker in samples]
    plain = {name: value - 0.1 * (both[0][name] + both[1][name]) for name, value in plain.items()}

furthest = max(float(np.abs(model[name] - plain[name]).max()) for name in model)
print("federated", {name: value.round(4).tolist() for name, value in model.items()})
print("pooled   ", {name: value.round(4).tolist() for name, value in plain.items()})
print(f"furthest apart by {furthest:.1e}; one step of the encoding is {10 / config.encoder.int_bound:.1e}")
print(result.statement())
