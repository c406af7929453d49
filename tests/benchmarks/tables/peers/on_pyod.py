# mypy: ignore-errors
"""PyOD's detectors at their own settings, on the encoding of `encoding.py`.

ECOD and COPOD keep a score for each column of the matrix; for the networks it is the squared error
of reconstruction, whose root of the sum is PyOD's score. Those of one column of the table add up.
"""

from time import perf_counter

import numpy as np
import pandas as pd
import torch
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.vae import VAE

from tests.benchmarks.tables.encoding import fit_encoder

DETECTORS = {
    "KNN": lambda seed: KNN(),
    "IForest": lambda seed: IForest(random_state=seed),
    "ECOD": lambda seed: ECOD(),
    "COPOD": lambda seed: COPOD(),
    "VAE": lambda seed: VAE(random_state=seed, verbose=0, device="cpu"),
    "AutoEncoder": lambda seed: AutoEncoder(random_state=seed, verbose=0, device="cpu"),
}


def score(detector, train, tests, seed, out):
    """Write a row's score and its columns' for each test, high for unusual, to `out` (.npz)."""
    torch.set_num_threads(1)
    rows = pd.read_parquet(train)
    encoder, started = fit_encoder(rows), perf_counter()
    model = DETECTORS[detector](seed)
    model.fit(encoder.encode(rows))
    arrays = {}
    for index, path in enumerate(tests):
        x = encoder.encode(pd.read_parquet(path))
        arrays[f"rows_{index}"] = model.decision_function(x)
        if (parts := split_score(model, x)) is not None:
            columns = np.zeros((len(x), len(encoder.names)))
            np.add.at(columns.T, encoder.owners, parts.T)
            arrays[f"columns_{index}"] = columns
    np.savez(out, **arrays)
    return {"seconds": perf_counter() - started}


def split_score(model, x):
    """Return the scores of the matrix's columns, of the rows that were scored last."""
    if isinstance(model, ECOD | COPOD):
        return model.O[-len(x) :]
    if isinstance(model, VAE | AutoEncoder):
        scaled = torch.as_tensor((x - model.X_mean) / model.X_std, dtype=torch.float32)
        model.model.eval()
        with torch.no_grad():
            output = model.model(scaled)
        mean = output[0] if isinstance(output, tuple) else output
        return ((scaled - mean) ** 2).numpy()
    return None
