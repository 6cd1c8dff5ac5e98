"""Train, evaluate and serve the models on CSV and Parquet files."""

from .optimizers import TableAdam, learning_rate
from .rowwise import RowwiseAdagrad, TableSGD
from .settings import Config, Settings

__all__ = ["Config", "RowwiseAdagrad", "Settings", "TableAdam", "TableSGD", "learning_rate"]
