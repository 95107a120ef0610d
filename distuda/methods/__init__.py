"""The methods by name. A new method is one file here and one line in `METHODS`."""

from distuda.methods.advent import AdvEnt, MinEnt
from distuda.methods.apoda import Apoda
from distuda.methods.davsn import DaVsn
from distuda.methods.erasing import Classify, Prohibitive
from distuda.methods.feature_regression import FeatureRegression
from distuda.methods.method import Context, Losses, Method, MethodConfig
from distuda.methods.self_training import SelfTraining
from distuda.methods.source_only import SourceOnly
from distuda.methods.tps import Tps
from distuda.methods.video import VideoAdversarial
from distuda.methods.video_self_training import VideoSelfTraining

METHODS: dict[str, type[Method]] = {
    "source_only": SourceOnly,
    "minent": MinEnt,
    "advent": AdvEnt,
    "apoda": Apoda,
    "self_training": SelfTraining,
    "feature_regression": FeatureRegression,
    "classify": Classify,
    "psl": Prohibitive,
    "vat": VideoAdversarial,
    "vst": VideoSelfTraining,
    "davsn": DaVsn,
    "tps": Tps,
}

__all__ = ["METHODS", "Context", "Losses", "Method", "MethodConfig"]
