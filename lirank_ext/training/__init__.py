"""Train, evaluate and serve the models on CSV and Parquet files."""
