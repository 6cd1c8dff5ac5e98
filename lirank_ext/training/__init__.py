"""Train, evaluate and serve the models on CSV and Parquet files."""

from .optimizers import RowwiseAdagrad, TableAdam, learning_rate
from .settings import Config, Settings

__all__ = ["Config", "RowwiseAdagrad", "Settings", "TableAdam", "learning_rate"]
