"""Optimisers and learning rates over steps."""

import numpy as np
from settings import SETTINGS, tiny_method, tiny_recipe

from distuda.engine.schedule import build_optimizers, build_schedules
from distuda.recipe import OptimizerConfig


def rates(config: OptimizerConfig, steps: int, name: str = "advent") -> list[list[float]]:
    """Learning rates a step: encoder, head, discriminator."""
    method = tiny_method(tiny_recipe(*SETTINGS[name]))
    optimizers = build_optimizers(method, config)
    schedules = build_schedules(optimizers, config, steps)
    seen = []
    for _ in range(steps):
        seen.append(
            [
                optimizer.param_groups[i]["lr"]
                for optimizer, i in ((optimizers[0], 0), (optimizers[0], -1), (optimizers[1], 0))
            ]
        )
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    return seen


def test_poly_decay_head_factor_and_warm_up() -> None:
    encoder, head, judge = (
        np.array(column) for column in zip(*rates(OptimizerConfig(lr=1.0, warmup_steps=2), 4), strict=True)
    )
    poly = (1 - np.arange(4) / 4) ** 0.9
    np.testing.assert_allclose(encoder, poly * [0.5, 1, 1, 1])
    np.testing.assert_allclose(head, 10 * encoder)
    np.testing.assert_allclose(judge, 1e-4 * poly)
    constant = rates(OptimizerConfig(lr=1.0, schedule="constant"), 3)
    assert [row[0] for row in constant] == [1, 1, 1]
    assert rates(OptimizerConfig(lr=1.0, decay_steps=2, poly_power=1), 4)[3][0] == 0
    stairs = rates(OptimizerConfig(lr=1.0, schedule="step", step_at=[0.4, 0.8], step_factor=0.5), 5)
    assert [row[0] for row in stairs] == [1, 1, 0.5, 0.5, 0.25]


def test_norms_and_biases_do_not_decay_with_adamw() -> None:
    method = tiny_method(tiny_recipe(*SETTINGS["advent"]))
    adamw = build_optimizers(method, OptimizerConfig(weight_decay=0.1))
    for group in adamw[0].param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert adamw[1].param_groups[0]["betas"] == (0.9, 0.99)
    sgd = build_optimizers(method, OptimizerConfig(name="sgd", weight_decay=0.1))
    assert {group["weight_decay"] for group in sgd[0].param_groups} == {0.1}
