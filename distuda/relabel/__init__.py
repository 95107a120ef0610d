"""Relabel phases by name: what looks at every image of a data set and writes columns beside it.

A new one is one file here and one line in `RELABELS`.
"""

from distuda.relabel.aggregate import Aggregate
from distuda.relabel.compose import Compose
from distuda.relabel.confident import Confident
from distuda.relabel.erase import Erase
from distuda.relabel.flow import FlowToBefore
from distuda.relabel.predict import Predict
from distuda.relabel.relabeller import RelabelConfig, Relabeller

RELABELS: dict[str, type[Relabeller]] = {
    "erase": Erase,
    "compose": Compose,
    "predict": Predict,
    "aggregate": Aggregate,
    "confident": Confident,
    "flow": FlowToBefore,
}

__all__ = ["RELABELS", "RelabelConfig", "Relabeller"]
