"""From a folder of pages to a model in one call: read, plan, train the parts, assemble them."""

from cm3kit.pipeline.made import Made
from cm3kit.pipeline.plan import Plan
from cm3kit.pipeline.request import Request
from cm3kit.pipeline.run import train_all

__all__ = ["Made", "Plan", "Request", "train_all"]
