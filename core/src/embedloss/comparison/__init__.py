"""Which loss is best on a data set: every loss that fits is trained under one budget from one start, and measured alike."""

from embedloss.comparison.job import Comparison
from embedloss.comparison.plan import Plan
from embedloss.comparison.standings import Standing

__all__ = ["Comparison", "Plan", "Standing"]
