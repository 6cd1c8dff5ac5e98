"""From files to batches: CSV and Parquet files read, columns understood, rows made tensors."""
