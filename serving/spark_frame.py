"""Score a Spark DataFrame: `serving.spark_frame.score_frame(frame, "models:/vae@champion")`."""

from serving.batch.spark_frame import score_frame

__all__ = ["score_frame"]
