"""Train on a Spark cluster, as docs/scale.md shows it; the arguments are those of `vae`."""

import sys

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from pipeline.cli import __main__ as cli


def main() -> None:
    master = "local-cluster[2,1,1024]"
    with SparkSession.builder.master(master).config("spark.ui.enabled", "false").getOrCreate():
        distributor = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False)
        distributor.run(str(cli.__file__), *sys.argv[1:])


if __name__ == "__main__":
    main()
