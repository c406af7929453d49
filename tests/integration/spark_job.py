"""Score and encode rows with the champion on a local Spark; a process of its own for the JVM.

In: an `.npy` of rows, and where to write. Out: an `.npz` of what each row got, in their order, and
the Java runtime that ran.
"""

import sys

import mlflow
import numpy as np
from pyspark.sql import Row, SparkSession

PARAMS = {"operation": "score", "seed": 7, "num_samples": 4}


def main(rows: str, out: str) -> None:
    x = np.load(rows)
    address: dict[str, bool | float | int | str | None] = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    builder = SparkSession.builder.master("local[1]").config(map=address)
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    lines = [Row(row=i, x=[int(v) for v in values.ravel()]) for i, values in enumerate(x)]
    frame = spark.createDataFrame(lines).repartition(3)
    outputs = {
        "score": "elbo float, log_likelihood float, kl float, iw_elbo float",
        "encode": "z_loc array<float>, z_scale array<float>",
    }
    for operation, result_type in outputs.items():
        udf = mlflow.pyfunc.spark_udf(
            spark,
            "models:/vae@champion",
            result_type=result_type,
            env_manager="local",
            params={**PARAMS, "operation": operation},
        )
        frame = frame.withColumn(operation, udf("x"))
    collected = sorted(frame.collect(), key=lambda line: line["row"])
    arrays = {
        f"{operation}.{name}": np.array([line[operation][name] for line in collected], np.float32)
        for operation in outputs
        for name in collected[0][operation].asDict()
    }
    java = spark.sparkContext._jvm.java.lang.System.getProperty("java.home")  # type: ignore[union-attr]
    np.savez(out, java=np.array(java), **arrays)  # type: ignore[arg-type]
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
