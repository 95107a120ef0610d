"""Hyper-parameter sweeps with Ray Tune."""
