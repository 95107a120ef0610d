"""What a sweep refuses before Ray starts, how it chooses, and what its page shows."""

from pathlib import Path

import pytest
from sweeps import SPACE, plan_for

from distuda.errors import UserError
from distuda.plan import load_phases
from tune import sweep as room
from tune.charts import axis_of
from tune.records import Records
from tune.report import render
from tune.results import best_yaml, ranking
from tune.space import load_space
from tune.sweep import sweep

MISTAKES = {
    "space": ("optimizer.lrr: {uniform: [0, 1]}\n", {}, "unknown field 'optimizer.lrr'"),
    "objective": (SPACE, {"objective": "entropi"}, "'entropi' is no score, did you mean 'entropy'"),
    "pbt": (SPACE, {"search": "pbt", "scheduler": "asha"}, "is a scheduler itself"),
    "num": (SPACE, {"num": 0}, "--num 0 is too few"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_ray_starts(
    mistake: str, domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, options, message = MISTAKES[mistake]
    monkeypatch.setattr(room, "start_ray", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match=message):
        sweep(plan_for(tmp_path, domains, text, **options))
    assert not (tmp_path / "sweep").exists()


def made(tmp_path: Path, scores: list[tuple[str, float, float]]) -> Records:
    records = Records(str(tmp_path))
    for number, (ended, first, second) in enumerate(scores):
        [record] = records.add(number, {"optimizer.lr": 0.1 * (number + 1)}, 1)
        record.status, record.scores = ended, {"entropy": first, "source_miou": second}  # type: ignore[assignment]
        records.save(record)
    return records


def test_the_choice_is_by_mean_place_over_finished_trials(tmp_path: Path) -> None:
    records = made(
        tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8), ("finished", 0.1, 0.7), ("stopped", 1, 1)]
    )
    assert [one.number for one in ranking(records, ["entropy"], 1)] == [0, 1, 2]
    both = ranking(records, ["entropy", "source_miou"], 1)
    assert [(one.number, one.rank) for one in both] == [(1, 1.5), (0, 2.0), (2, 2.5)]
    assert [
        one.number for one in ranking(made(tmp_path / "b", [("stopped", 0.1, 0), ("failed", 0, 0)]), ["entropy"], 1)
    ] == [0]


def test_options_of_a_chart_are_numbers_by_size_then_words() -> None:
    axis = axis_of("x", [0.001, 1e-09, "none", 0.0008, None, 10, 9], None)
    assert [label for _, label in axis.marks()] == ["1e-09", "0.0008", "0.001", "9", "10", "none"]


def test_null_is_an_option_that_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("source.rare_class_temperature: {choice: [null, 0.05]}\n")
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8)])
    for record, value in zip(records, (None, 0.05), strict=True):
        record.configuration = {"source.rare_class_temperature": value}
        records.save(record)
    page = render(
        records, ranking(records, ["entropy"], 1), load_space(str(tmp_path / "space.yaml")), "entropy", ["entropy"]
    )
    assert ">null</text>" in page and ">0.05</text>" in page


def test_the_oracle_is_called_so_everywhere(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    [record] = records.add(0, {"optimizer.lr": 0.1}, 1)
    record.status, record.scores = "finished", {"miou": 0.5, "entropy": -0.1}
    records.save(record)
    ranked = ranking(records, ["target_miou"], 1)
    (tmp_path / "space.yaml").write_text(SPACE)
    page = render(records, ranked, load_space(str(tmp_path / "space.yaml")), "target_miou", ["target_miou"])
    assert "<b>Oracle.</b>" in page and "target_miou (oracle)" in page and "http" not in page.replace("http-equiv", "")
    assert best_yaml(load_phases(None, []), ["target_miou"], "s").startswith(
        "# The best configuration of s by target_miou (oracle)"
    )
