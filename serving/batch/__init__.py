"""Score, encode, reconstruct or sample many rows into a folder of Parquet files."""
