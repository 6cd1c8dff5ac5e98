"""Train, evaluate and serve the models on CSV and Parquet files."""

from .optimizers import RowwiseAdagrad, learning_rate
from .settings import Config, Settings

__all__ = ["Config", "RowwiseAdagrad", "Settings", "learning_rate"]
