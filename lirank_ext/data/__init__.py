"""From files to batches: CSV and Parquet files read, columns understood, rows made tensors."""

from pathlib import Path

ADULT = Path(__file__).parent / "adult.parquet"  # the UCI Adult data set; see ATTRIBUTION.md
