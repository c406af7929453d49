"""Score a Spark DataFrame: `serving.spark_frame.score_frame(frame, "models:/vae@champion")`."""

from serving.batch.result_columns import ScoreChoice
from serving.batch.spark_frame import score_frame

__all__ = ["ScoreChoice", "score_frame"]
