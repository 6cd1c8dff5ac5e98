"""Pictures of a trained model on labeled rows, in one HTML file: ``lirank-ext report``."""

from .measure import Figures, measure
from .page import draw

__all__ = ["Figures", "draw", "measure"]
