"""What a training can go by. Commands show the list, and so it is kept where no torch is needed."""

from typing import Literal

Monitor = Literal["auc", "log_loss", "pr_auc", "gauc", "ndcg"]
# Whether more of it is better.
MONITORS: dict[Monitor, bool] = {
    "auc": True,
    "log_loss": False,
    "pr_auc": True,
    "gauc": True,
    "ndcg": True,
}
