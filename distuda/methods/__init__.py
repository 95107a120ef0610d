"""The methods by name. A new method is one file here and one line in `METHODS`."""

from distuda.methods.advent import AdvEnt, MinEnt
from distuda.methods.method import Context, Losses, Method, MethodConfig
from distuda.methods.self_training import SelfTraining
from distuda.methods.source_only import SourceOnly

METHODS: dict[str, type[Method]] = {
    "source_only": SourceOnly,
    "minent": MinEnt,
    "advent": AdvEnt,
    "self_training": SelfTraining,
}

__all__ = ["METHODS", "Context", "Losses", "Method", "MethodConfig"]
