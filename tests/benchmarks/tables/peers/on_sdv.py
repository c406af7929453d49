# mypy: ignore-errors
"""SDV's synthesizers at their own settings, on the table as it is.

SDV's guide: detect the metadata, look at it, fit. Here it is known that a table has no key and that
text is a category (and not a name or a postal code, which SDV would replace by invented ones).
"""

from time import perf_counter

import numpy as np
import pandas as pd
import torch
from sdv.metadata import Metadata
from sdv.single_table import GaussianCopulaSynthesizer, TVAESynthesizer

TABLE = "table"
SYNTHESIZERS = {
    "GaussianCopula": lambda metadata: GaussianCopulaSynthesizer(metadata),
    "TVAE": lambda metadata: TVAESynthesizer(metadata, enable_gpu=False),
}


def sample(synthesizer, train, count, seed, out):
    """Fit and write `count` rows to `out` (Parquet)."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    rows = pd.read_parquet(train)
    started = perf_counter()
    model = SYNTHESIZERS[synthesizer](describe(rows))
    model.fit({TABLE: rows})
    drawn = model.sample(num_rows=count)[TABLE]
    drawn.to_parquet(out, index=False)
    return {"seconds": perf_counter() - started}


def describe(rows):
    """Return the kinds of a table's columns, as SDV names them."""
    columns = {}
    for name, dtype in rows.dtypes.items():
        if pd.api.types.is_bool_dtype(dtype):
            columns[name] = {"sdtype": "boolean"}
        elif pd.api.types.is_datetime64_any_dtype(dtype):
            columns[name] = {"sdtype": "datetime"}
        elif pd.api.types.is_numeric_dtype(dtype):
            columns[name] = {"sdtype": "numerical"}
        else:
            columns[name] = {"sdtype": "categorical"}
    return Metadata.load_from_dict({"tables": {TABLE: {"columns": columns}}})
