"""How a model is scored: with labels and without."""
