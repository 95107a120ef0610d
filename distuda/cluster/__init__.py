"""Ray around the engine."""
