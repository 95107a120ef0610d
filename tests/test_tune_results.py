"""What a sweep refuses before Ray starts, how it chooses, and what its page shows."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeps import SPACE, plan_for

from distuda.errors import RunFailed, UserError
from distuda.plan import load_phases
from tune import resources
from tune.charts import Line, axis_of, parallel
from tune.live import Observer
from tune.plan import drawn, last_recipe, settle
from tune.records import Records
from tune.report import render
from tune.results import agreement, best_yaml, chosen_by, doubt, label_of, may_lead, ranking, to_parquet, worth_keeping
from tune.space import Range, Space
from tune.space_file import load_space
from tune.sweep import finish, sweep

MISTAKES = {
    "space": ("optimizer.lrr: {uniform: [0, 1]}\n", {}, "unknown field 'optimizer.lrr'"),
    "objective": (SPACE, {"objective": "entropi"}, r"'entropi' is no score \(did you mean 'entropy'"),
    "pbt": (SPACE, {"search": "pbt", "scheduler": "asha"}, "is a scheduler itself"),
    "num": (SPACE, {"num": 0}, "--num 0 is too few"),
    "steps": ("steps: {int: [4, 6]}\n", {"scheduler": "asha"}, "compares trials at equal steps, and .* 'steps'"),
    "steps of a population": ("steps: {int: [4, 6]}\n", {"search": "pbt"}, "--search pbt compares trials at equal"),
    "grace": (
        SPACE,
        {"scheduler": "median", "grace": 6},
        "decide nothing: .* 6 steps, and a trial has 6",
    ),
    "grace between evaluations": (
        SPACE,
        {"scheduler": "asha", "grace": 5},
        "decide nothing: .* 6 steps, and a trial has 6. Lower --grace",
    ),
    "fraction": ("batch_size: {uniform: [1, 3]}\n", {}, "space .*: batch_size=1.76393: .*integer"),
    "oracle": (SPACE, {"choose": ("target_miou",), "words": ("evaluation.uri=none",)}, "--choose target_miou looks at"),
    "clips": (SPACE, {"choose": ("temporal_consistency",)}, "--choose temporal_consistency needs clips"),
    "cpus": (SPACE, {"cpus": 2, "words": ("workers=1",)}, "with workers=1 the workers take theirs"),
    "options": ("method.calibrate_images: {choice: [0, 2]}\n", {"search": "pbt"}, "has options alone. Use grid"),
    "share": (SPACE, {"search": "pbt", "cpus": 1}, "give --cpus or --concurrent, not both"),
    "no grace": (SPACE, {"scheduler": "asha", "grace": 0}, "--grace 0 is too few. Give at least 1"),
    "grace in vain": (SPACE, {"grace": 2}, "--grace 2: nothing ends trials early or copies them"),
    "points in vain": (SPACE, {"points": 5}, "--points 5 is for --search grid, not for random"),
    "num in vain": (SPACE, {"search": "grid", "num": 5}, "--num 5 is not for --search grid, which tries all"),
    "negative concurrent": (SPACE, {"concurrent": -1}, "--concurrent -1 is below 0"),
    "no cpus": (SPACE, {"cpus": 0}, "--cpus 0 is no share"),
    "negative gpus": (SPACE, {"gpus": -1}, "--gpus -1 is no share"),
    "grid": (SPACE, {"search": "grid", "points": 10_001}, "with 10001 points a range has 10,001 configurations"),
    "steered": (SPACE, {"objective": "aggregate"}, "aggregate: .* cannot steer a search. Give it to --choose"),
    "aggregated": (
        SPACE,
        {"choose": ("aggregate", "target_miou")},
        "--choose aggregate,target_miou: aggregate is the mean place .* Give it alone",
    ),
    "chosen twice": (SPACE, {"choose": ("entropy", "entropy")}, "--choose names entropy twice"),
    "chosen": (SPACE, {"choose": ("aggregat",)}, "did you mean 'aggregate'.*temporal_consistency, target_miou, aggreg"),
    "checkpoints": (SPACE, {"search": "pbt", "words": ("checkpoint.every_steps=3",)}, "=3 does not divide evaluation"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_ray_starts(
    mistake: str, domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, options, message = MISTAKES[mistake]
    monkeypatch.setattr(resources, "start_ray", lambda **_: pytest.fail("Ray was started"))
    words = options.get("words", ())
    plan = plan_for(tmp_path, domains, text, *words, **{k: v for k, v in options.items() if k != "words"})
    plan = replace(plan, words=tuple(word for word in plan.words if f"{word.split('=')[0]}:" not in text))
    with pytest.raises(UserError, match=message):
        sweep(plan)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("search", ["random", "grid", "pbt"])
def test_each_configuration_that_is_drawn_is_read(
    search: str, domains: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "method.name: {choice: [advent, minent]}\nmethod.lambda_adv: {uniform: [0.1, 0.2]}\n"
    plan = plan_for(tmp_path, domains, text, search=search, num=None, concurrent=0)
    plan = replace(plan, words=tuple(word for word in plan.words if not word.startswith("method")))
    # field by field nothing would be wrong
    monkeypatch.setattr(Space, "check", lambda self, recipe, words: load_phases(recipe, words))
    with pytest.raises(UserError, match=r"method.name=minent method.lambda_adv=0.1\d*: unknown field"):
        settle(plan)
    assert settle(replace(plan, search="tpe"))


def test_random_search_draws_no_configuration_twice(
    domains: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "augment.flip: {choice: [0, 0.5]}\nmethod.calibrate_images: {choice: [0, 2]}\n"
    plan, _ = settle(plan_for(tmp_path, domains, text, num=16))
    assert "4 configurations differ, and these are trained instead of 16" in capsys.readouterr().err
    everything = drawn(plan)
    assert len(everything) == len({str(one) for one in everything}) == 4
    assert drawn(replace(plan, num=3)) == everything[:3]  # so that --num may be raised
    assert len(drawn(replace(plan, search="pbt"))) == 16


def test_scores_that_the_last_phase_does_not_compute_are_refused(domains: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "phases.yaml"
    recipe.write_text("phases:\n- {name: first, steps: 2}\n- {name: second, steps: 4, init_from: first}\n")
    own = ("phases.second.evaluation.scores=[entropy]", "checkpoint.best_by=entropy")
    plan = plan_for(tmp_path, domains, SPACE, *own, objective="entropy")
    plan = replace(plan, recipe=str(recipe), words=tuple(w for w in plan.words if not w.startswith("steps")))
    assert settle(plan)
    for option, changed in (("objective", "source_miou"), ("choose", ("entropy", "source_miou"))):
        with pytest.raises(UserError, match=rf"--{option} source_miou: the last phase that trains computes entropy by"):
            settle(replace(plan, **{option: changed}))  # type: ignore[arg-type]


def test_schedulers_refuse_a_space_of_rounds(domains: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "phases.yaml"
    recipe.write_text("rounds: 2\nphases:\n- repeat:\n  - {name: first, steps: 2}\n- {name: second, steps: 4}\n")
    plan = plan_for(tmp_path, domains, "rounds: {int: [1, 2]}\n")
    plan = replace(plan, recipe=str(recipe), words=tuple(w for w in plan.words if not w.startswith("steps")))
    assert settle(plan)
    with pytest.raises(UserError, match=r"--scheduler asha compares trials at equal steps, and .* searches 'rounds'"):
        settle(replace(plan, scheduler="asha"))


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
    assert [one.number for one in ranking(records, ["entropy"], "entropy", 1)] == [0, 1, 2]
    both = ranking(records, ["entropy", "source_miou"], "entropy", 1)
    assert [(one.number, one.rank) for one in both] == [(1, 1.5), (0, 2.0), (2, 2.5)]
    assert [
        one.number
        for one in ranking(made(tmp_path / "b", [("stopped", 0.1, 0), ("failed", 0, 0)]), ["entropy"], "entropy", 1)
    ] == [0]


def test_equal_mean_places_are_decided_by_the_objective(tmp_path: Path) -> None:
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.1, 0.9)])
    for choose in (["entropy", "source_miou"], ["source_miou", "entropy"]):
        for objective, best in (("entropy", 0), ("source_miou", 1)):
            assert [one.rank for one in ranking(records, choose, objective, 1)] == [1.5, 1.5]
            assert ranking(records, choose, objective, 1)[0].number == best
            assert worth_keeping(records, choose, objective, 1, 1) == [f"000{best}"]
    for record in records:
        record.scores["miou"] = record.number  # the oracle, by its own name
    assert ranking(records, ["entropy", "source_miou"], "target_miou", 1)[0].number == 1


def test_seeds_that_were_ended_early_do_not_hide_what_was_trained(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    for number, repeats in enumerate(
        [("finished", "finished", "stopped"), ("stopped",) * 3, ("finished", "failed", "failed")]
    ):
        for record, status in zip(records.add(number, {}, 3), repeats, strict=True):
            record.status, record.step = status, 6 if status == "finished" else 2  # type: ignore[assignment]
            record.scores = {"entropy": {"finished": 0.5 + number / 10, "stopped": 0.9, "failed": 0.0}[status]}
            records.save(record)
    found = ranking(records, ["entropy"], "entropy", 3)
    assert [(one.number, len(one.records)) for one in found] == [(2, 1), (0, 2)]
    [record] = records.add(3, {}, 1)
    record.status, record.step, record.scores = "stopped", 4, {"entropy": 0.1}
    for old in records:
        old.status = "failed" if old.status == "finished" else old.status
    # at step 4, the others ended at 2
    assert [one.number for one in ranking(records, ["entropy"], "entropy", 3)] == [3]


def test_the_aggregate_takes_those_of_its_scores_that_all_candidates_have(tmp_path: Path) -> None:
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8), ("stopped", 0, 0)])
    assert chosen_by(["aggregate"], "entropy", records) == ["entropy"]  # not by source_miou, which is no part of it
    for record in list(records)[:2]:  # the third was ended in a phase that has nothing to score
        record.scores |= {"information_maximisation": 0.5, "augmentation_consistency": 0.5}
    assert chosen_by(["aggregate"], "entropy", records) == ["information_maximisation", "augmentation_consistency"]
    del records.by_id["0000"].scores["augmentation_consistency"]
    assert chosen_by(["aggregate"], "entropy", records) == ["information_maximisation"]
    assert chosen_by(["aggregate"], "entropy", Records(str(tmp_path / "none"))) == ["entropy"]


@pytest.mark.parametrize(
    ("options", "choose", "computed"),
    [
        ({}, ("aggregate",), ["entropy", "information_maximisation", "augmentation_consistency"]),
        ({"objective": "entropy"}, ("entropy",), ["entropy", "information_maximisation"]),
        ({"objective": "target_miou"}, ("target_miou",), ["entropy", "information_maximisation"]),
        ({"choose": ("entropy",)}, ("entropy",), ["entropy", "information_maximisation"]),
    ],
)
def test_a_sweep_chooses_by_the_aggregate_unless_told_otherwise_and_computes_what_it_needs(
    options: dict[str, Any], choose: tuple[str, ...], computed: list[str], domains: list[str], tmp_path: Path
) -> None:
    plan, phases = settle(plan_for(tmp_path, domains, **options))
    assert plan.choose == choose and last_recipe(phases).evaluation.scores == computed


def test_scores_that_disagree_are_a_reason_to_doubt_the_choice(domains: list[str], tmp_path: Path) -> None:
    space = plan_for(tmp_path, domains).space
    for name, stable in (("agree", [1, 2, 4, 3, 5, 6, 8, 7]), ("differ", [8, 2, 3, 1, 5, 4, 6, 7])):
        records = made(tmp_path / name, [("finished", -1 + number / 10, 0.0) for number in range(8)])
        for record, place in zip(records, stable, strict=True):
            record.scores |= {"information_maximisation": record.number / 10, "augmentation_consistency": place / 10}
            record.scores["miou"] = 0.5
        found = ranking(records, ["information_maximisation"], "information_maximisation", 1)
        expected = np.corrcoef(range(8), stable)[0, 1]  # both are places already
        assert agreement(found) == pytest.approx(expected) and (expected < 0.7) == (name == "differ")
        for by, told in ((["information_maximisation"], name == "differ"), (["target_miou"], False)):
            page = render(records, found, space, by[0], by)
            assert ("In doubt" in page and f"rank correlation {expected:.2f}" in page) == told
        for one in found:  # the same order, but none that has learnt next to nothing
            one.scores["information_maximisation"] += 1
        assert agreement(found) == pytest.approx(expected) and not doubt(found)
        assert agreement(found[:7]) is None
        for one in found:
            one.scores["augmentation_consistency"] = 0.5
        assert agreement(found) is None and not doubt(found)


def test_checkpoints_stay_with_what_is_chosen(tmp_path: Path) -> None:
    records = made(
        tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8), ("finished", 0.1, 0.9), ("stopped", 1, 1)]
    )
    assert worth_keeping(records, ["entropy"], "entropy", 1, 2) == ["0000", "0001"]
    assert worth_keeping(records, ["source_miou"], "entropy", 1, 2) == ["0002", "0001"]
    assert worth_keeping(records, ["source_miou"], "entropy", 1, 4) == ["0002", "0001", "0000", "0003"]
    for record in records.add(2, {}, 3)[1:]:
        record.status, record.scores = "finished", {"entropy": 0.2, "source_miou": 0.9}
    # one configuration, whole
    assert worth_keeping(records, ["source_miou"], "entropy", 3, 1) == ["0002", "0002-1", "0002-2"]
    records.by_id["0002-2"].status = "failed"  # and one that is not whole is chosen after one that is
    for record, *more in (records.add(1, {}, 3),):
        for other in more:
            other.status, other.scores = "finished", record.scores
    assert worth_keeping(records, ["source_miou"], "entropy", 3, 1) == ["0001", "0001-1", "0001-2"]
    assert ranking(records, ["source_miou"], "entropy", 3)[0].number == 1
    # whichever has all its seeds is not beaten by one that has not
    assert may_lead(records, ["source_miou"], 3) == ["0001", "0001-1", "0001-2", "0002", "0002-1"]


def test_what_later_trials_can_put_first_is_kept(tmp_path: Path) -> None:
    """The second leads until the fourth and fifth, which come between it and the first by one score alone."""
    scores = [(0.9, 0.5), (0.6, 0.8), (0.5, 0.4), (0.8, 0.1), (0.7, 0.1)]
    records, both = Records(str(tmp_path)), ["entropy", "source_miou"]
    leaders = []
    for number, (first, second) in enumerate(scores):
        [record] = records.add(number, {}, 1)
        record.status, record.scores = "finished", {"entropy": first, "source_miou": second}
        (tmp_path / "trials" / record.id / "checkpoints").mkdir()
        Observer(records, "source_miou", both, 1, 1, 5).free()
        leaders.append(ranking(records, both, "source_miou", 1)[0].number)
    assert leaders == [0, 1, 1, 0, 0]
    assert sorted(path.parent.name for path in tmp_path.glob("trials/*/checkpoints")) == ["0000", "0001"]


def test_trials_that_ended_without_the_score_are_kept_and_said(domains: list[str], tmp_path: Path) -> None:
    plan, _ = settle(plan_for(tmp_path, domains, choose=("class_prior_divergence",)))
    records = made(tmp_path / "sweep", [("finished", 0.9, 0.1), ("stopped", 0.8, 0.8)])
    checkpoints = Path(records.folder("0000")) / "checkpoints"
    checkpoints.mkdir()
    Observer(records, plan.objective, plan.choose, 1, 1, 2).free()
    assert checkpoints.exists()
    with pytest.raises(RunFailed, match=r"2 trials came to an end, but none has class_prior_div.* have: entropy"):
        finish(plan, records, 0)


def test_options_of_a_chart_are_numbers_by_size_then_words() -> None:
    axis = axis_of("x", [0.001, 1e-09, "none", 0.0008, None, 10, 9], None)
    assert [label for _, label in axis.marks()] == ["1e-09", "0.0008", "0.001", "9", "10", "none"]


def test_an_axis_is_a_range_only_where_all_values_are_of_it() -> None:
    rates = axis_of("x", [0.02, 0.5], Range(0.01, 1, log=True))
    assert [label for _, label in rates.marks()] == ["0.01", "1"] and not rates.options
    for other in (0, "null", True, [1]):  # options that the same field has under another option
        axis = axis_of("x", [0.02, other], Range(0.01, 1, log=True))
        assert len(axis.options) == 2 and axis.place(other) is not None
    wider = axis_of("x", [0.02, 5], Range(0.01, 1))
    assert wider.place(5) == 1 and wider.place(0.01) == 0


def test_a_field_that_is_a_range_here_and_a_choice_there_is_shown(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("""
method.name:
  choice:
    advent: {method.class_prior: {loguniform: [0.01, 1]}}
    minent: {method.class_prior: {choice: [0, 0.1]}}
""")
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8)])
    for record, (name, value) in zip(records, (("advent", 0.3), ("minent", 0)), strict=True):
        record.configuration = {"method.name": name, "method.class_prior": value}
        records.save(record)
    space = load_space(str(tmp_path / "space.yaml"))
    page = render(records, ranking(records, ["entropy"], "entropy", 1), space, "entropy", ["entropy"])
    assert ">0</text>" in page and ">0.3</text>" in page


def test_a_line_is_dashed_across_fields_that_its_trial_lacks() -> None:
    axes = [axis_of(name, [0, 1], Range(0, 1)) for name in "abcd"]
    page = parallel(axes, [Line("x", {"a": 0, "b": 1, "d": 1}, 1), Line("y", dict.fromkeys("abcd", 0), 0)])
    assert page.count("<path") == 3 and page.count('stroke-dasharray="2 6"') == 1


def test_null_is_an_option_that_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("source.rare_class_temperature: {choice: [null, 0.05]}\n")
    records = made(tmp_path, [("finished", 0.9, 0.1), ("finished", 0.8, 0.8)])
    for record, value in zip(records, (None, 0.05), strict=True):
        record.configuration = {"source.rare_class_temperature": value}
        records.save(record)
    page = render(
        records,
        ranking(records, ["entropy"], "entropy", 1),
        load_space(str(tmp_path / "space.yaml")),
        "entropy",
        ["entropy"],
    )
    assert ">null</text>" in page and ">0.05</text>" in page


def test_tables_of_two_sweeps_fit_together(tmp_path: Path) -> None:
    """Also where one had no failure, and another no trial that ended."""
    tables = []
    for number, status in enumerate(("finished", "failed")):
        records = made(tmp_path / str(number), [(status, 0.9, 0.1)])
        for record in records:
            record.configuration = {"batch_size": 2, "optimizer.lr": 0.5, "init_from": "runs/a" if number else None}
            record.reason = "lost" * number
        ranked = ranking(records, ["entropy"], "entropy", 1)
        tables.append(pq.read_table(io.BytesIO(to_parquet(records, ranked, ["entropy"], "entropy"))))
    kinds = {field.name: str(field.type) for field in pa.concat_tables(tables).schema}
    assert (kinds["batch_size"], kinds["optimizer.lr"], kinds["place"]) == ("int64", "double", "int64")
    assert kinds["reason"] == kinds["history"] == kinds["init_from"] == "string"


@pytest.mark.parametrize("name", ["miou", "accuracy", "vpq", "vpq_5", "miou_cityscapes13", "miou_synthia_seq11"])
def test_every_score_by_target_labels_is_called_oracle(name: str) -> None:
    assert label_of(name).endswith("(oracle)")
    assert label_of("source_miou") == "source_miou"


def test_the_oracle_is_called_so_everywhere(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    [record] = records.add(0, {"optimizer.lr": 0.1}, 1)
    record.status, record.scores = "finished", {"miou": 0.5, "entropy": -0.1}
    records.save(record)
    ranked = ranking(records, ["target_miou"], "entropy", 1)
    (tmp_path / "space.yaml").write_text(SPACE)
    page = render(records, ranked, load_space(str(tmp_path / "space.yaml")), "target_miou", ["target_miou"])
    assert "<b>Oracle.</b>" in page and "target_miou (oracle)" in page and "http" not in page.replace("http-equiv", "")
    both = render(records, ranked, load_space(str(tmp_path / "space.yaml")), "entropy", ["target_miou", "entropy"])
    for name in ("entropy", "target_miou (oracle)"):  # an axis for each score that had a say
        assert both.count(f"<title>{name}</title>") == 1
    for by, objective, said in (
        (["target_miou"], "target_miou", "by target_miou (oracle)"),
        (["target_miou"], "entropy", "by target_miou (oracle), searched by entropy"),
        (["entropy"], "target_miou", "by entropy, searched by target_miou (oracle)"),
    ):
        table = pq.read_table(io.BytesIO(to_parquet(records, ranked, by, objective)))
        assert table["chosen_by"].to_pylist() == [said]
        assert f"chosen {said}" in str(Observer(records, objective, by, 1, 1, 1).table().title)
    phases, entropy = load_phases(None, []), ["entropy"]
    assert best_yaml(phases, ranked[0], ["target_miou"], "target_miou", "s").startswith(
        "# The best configuration of s by target_miou (oracle).\n"
    )
    steered = best_yaml(phases, ranked[0], entropy, "target_miou", "s")
    assert steered.startswith("# The best configuration of s by entropy, searched by target_miou (oracle).\n")
    record.history = [(2, {"optimizer.lr": 0.3})]
    assert "# Its score belongs to the weights in trials/0000" in best_yaml(phases, ranked[0], entropy, "entropy", "s")
