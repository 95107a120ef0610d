"""The engine: loop, step, checkpoints, evaluation. Nothing in here imports Ray."""
