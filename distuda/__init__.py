"""Distuda: unsupervised domain adaptation for semantic segmentation, on one machine or a Ray cluster."""

__version__ = "0.1.0"
