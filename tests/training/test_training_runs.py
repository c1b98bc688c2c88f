"""Whole runs on models of two layers: they learn, repeat, and leave everything or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skillserve.card import ModelCard, read_card
from skillserve.cli import main
from skillserve.errors import ConfigError
from skillserve.publish import sha256_of
from skillserve.settings import EvaluateSettings, Settings, TrainSettings
from skillserve_training import read_training_data, resolve_base, train_embedder, train_reranker
from skillserve_training.contrast import Contrast
from skillserve_training.dataset import hold_out
from skillserve_training.evaluate import ndcg
from skillserve_training.systems import open_weights
from skillserve_training.trainer import learning_rate_share
from skillserve_training.weights import open_embedder, open_reranker

Train = Callable[..., ModelCard]


@pytest.fixture
def train(tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path) -> Train:
    """Train an embedder into a folder of this name; settings may be changed."""

    def run(name: str, **changed: object) -> ModelCard:
        settings = tiny_settings.model_copy(update=changed)
        return train_embedder(
            read_training_data(tiny_data), resolve_base(str(tiny_embedder)), settings, tmp_path / name
        )

    return run


def test_an_embedder_learns_and_its_card_says_how(train: Train, tmp_path: Path) -> None:
    card = train("out")
    assert read_card(tmp_path / "out", verify_weights=True) == card
    summary = card.training
    assert summary["final_loss"] < 0.5 * summary["first_loss"]
    assert set(summary["holdout_ndcg_at_10"]) == {"before", "after"}
    assert summary["num_queries"] + summary["num_holdout_queries"] <= 32
    assert summary["settings"]["seed"] == 5
    assert summary["parts"]["cut"] == "hold-out of 0.2"
    assert summary["parts"]["trained_on"] != summary["parts"]["chosen_on"]
    assert card.data_digest == read_training_data(tmp_path / "data").digest
    open_embedder(tmp_path / "out")


def test_a_seed_makes_the_same_weights_again(train: Train, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(name, seed=seed, epochs=1.0)
    one, same, other = (sha256_of(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    assert one == same != other


def test_frozen_layers_and_embeddings_keep_their_weights(train: Train, tmp_path: Path, tiny_embedder: Path) -> None:
    train("out", frozen_layers=1, freeze_embeddings=True)
    before, after = (open_embedder(folder).state_dict() for folder in (tiny_embedder, tmp_path / "out"))
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)


def test_an_encoder_that_could_not_learn_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match="--frozen-layers 1"):
        train("out", frozen_layers=2)


def test_a_diverging_run_names_the_step_and_the_knob(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training step \d+ of .*--learning-rate"):
        train("out", learning_rate=1e30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.checkpoints"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault comes in the fourth step; the checkpoint of the second one is what a calmer run may start from."""
    whole = Contrast.backward
    steps = iter(range(1, 100))

    def faulty(self: Contrast, *arguments: object) -> torch.Tensor:
        loss = whole(self, *arguments)  # type: ignore[arg-type]
        return loss * float("nan") if next(steps) == 4 else loss

    monkeypatch.setattr(Contrast, "backward", faulty)
    with pytest.raises(ConfigError, match=r"training step 4 of .*a loss that is not finite.*checkpoint of step 2"):
        train("out", checkpoint_steps=2)
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.checkpoints" / "checkpoint-2"
    assert all(torch.isfinite(weight).all() for weight in load_file(kept / "model.safetensors").values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("none left")])
def test_where_memory_runs_out_the_knobs_are_named(
    train: Train, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def greedy(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Contrast, "backward", greedy)
    with pytest.raises(ConfigError, match=r"--chunk-size 20.*--train-tokens 20.*--batch-size 4"):
        train("out")


def test_the_weights_that_did_best_on_the_hold_out_are_kept(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are given, so that the second of three measurements is the best one whatever the model learns."""
    figures = iter([0.1, 0.2, 0.9, 0.3])
    monkeypatch.setattr("skillserve_training.embedder.ndcg", lambda *_: next(figures))
    card = train("out", evals=3)
    steps = card.training["steps"]
    assert card.training["best_step"] == round(steps * 2 / 3)
    shorter = json.loads((tmp_path / "out" / "training" / "report.json").read_text())["curves"]["holdout_ndcg_at_10"]
    assert list(shorter.values()) == [0.2, 0.9, 0.3]
    monkeypatch.undo()
    last = train("last")
    assert last.training["best_step"] == steps
    one, other = (sha256_of(tmp_path / name / "model.safetensors") for name in ("out", "last"))
    assert one != other


def test_a_run_that_gets_no_better_stops(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.1, 0.5, 0.4, 0.3])
    monkeypatch.setattr("skillserve_training.embedder.ndcg", lambda *_: next(figures))
    card = train("out", evals=8, patience=2)
    assert card.training["steps"] == round(3 / 8 * 12)
    assert card.training["best_step"] == round(1 / 8 * 12)


def test_a_run_that_goes_on_knows_what_its_base_was_measured_at(
    train: Train, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured but the end; with longer texts the base's figure says nothing, and both are."""
    measured = train("first", epochs=1.0).training["holdout_ndcg_at_10"]["after"]
    figures = iter([0.71, 0.72, 0.73])
    monkeypatch.setattr("skillserve_training.embedder.ndcg", lambda *_: next(figures))
    found = []
    for max_tokens in (tiny_settings.max_tokens, tiny_settings.max_tokens + 8):
        settings = tiny_settings.model_copy(update={"epochs": 1.0, "max_tokens": max_tokens})
        base = resolve_base(str(tmp_path / "first"))
        card = train_embedder(read_training_data(tiny_data), base, settings, tmp_path / "second")
        found.append(card.training["holdout_ndcg_at_10"])
    assert found == [{"before": measured, "after": 0.71}, {"before": 0.72, "after": 0.73}]


def test_an_interrupted_run_leaves_the_old_folder_and_its_checkpoints(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    whole, steps = Contrast.backward, iter(range(1, 100))

    def interrupted(self: Contrast, *arguments: object) -> torch.Tensor:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Contrast, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("out", checkpoint_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "out.checkpoints"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]


def test_a_new_run_replaces_the_folder(train: Train, tmp_path: Path) -> None:
    first, second = train("out", epochs=1.0, seed=1), train("out", epochs=1.0, seed=2)
    assert read_card(tmp_path / "out", verify_weights=True) == second != first


def test_a_reranker_learns_from_the_embedders_candidates(
    train: Train, tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    embedder = train("embedder")
    card = train_reranker(
        read_training_data(tiny_data),
        resolve_base(str(tiny_embedder)),
        resolve_base(str(tmp_path / "embedder")),
        tiny_settings.model_copy(update={"epochs": 30.0, "learning_rate": 3e-4, "num_negatives": 3, "batch_size": 4}),
        tmp_path / "reranker",
    )
    assert read_card(tmp_path / "reranker", verify_weights=True) == card
    assert card.role == "reranker"
    assert card.training["embedder"] == embedder.digest
    assert card.training["final_loss"] < card.training["first_loss"]
    assert set(card.training["holdout_ndcg_at_10"]) == {"embedder_only", "logit_only", "reranked"}
    assert open_reranker(tmp_path / "reranker").config.num_labels == 1


def test_a_rerankers_seed_draws_its_head_again(
    train: Train, tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    train("embedder", epochs=1.0)
    data, base = read_training_data(tiny_data), resolve_base(str(tiny_embedder))
    embedder = resolve_base(str(tmp_path / "embedder"))
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        settings = tiny_settings.model_copy(update={"epochs": 1.0, "seed": seed})
        train_reranker(data, base, embedder, settings, tmp_path / name)
    one, same, other = (sha256_of(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    assert one == same != other


def test_a_reranker_follows_the_first_stage_that_it_is_told(
    train: Train, tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    """Its hold-out is ranked as `skillserve evaluate` ranks it with these weights, parts of long requests included."""
    path = tiny_data / "queries" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    long = [row | {"query": f"first {row['query']}. plan it. keep the log. find {row['query'][-5:]}."} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in long))
    train("embedder", epochs=1.0)
    data, embedder = read_training_data(tiny_data), tmp_path / "embedder"
    words, both = {"lexical_weight": 3.0}, {"lexical_weight": 3.0, "part_weight": 9.0}
    settings = tiny_settings.model_copy(update={"epochs": 1.0, **both})
    card = train_reranker(
        data, resolve_base(str(tiny_embedder)), resolve_base(str(embedder)), settings, tmp_path / "out"
    )
    _, to_choose = hold_out(data, share=settings.holdout_share)
    figures = []
    for weights in ({}, words, both):
        system = open_weights(str(embedder), Settings(evaluate=EvaluateSettings(**weights)))
        figures.append(ndcg(system.rank(to_choose.queries, to_choose.skills, depth=100), to_choose))
    assert card.training["holdout_ndcg_at_10"]["embedder_only"] == pytest.approx(figures[-1], abs=1e-4)
    assert len(set(figures)) == len(figures)


def test_a_trained_head_is_gone_on_with(
    train: Train, tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    """A reranker as a base, with next to no learning: its head is still there."""
    train("embedder", epochs=1.0)
    data, embedder = read_training_data(tiny_data), resolve_base(str(tmp_path / "embedder"))
    train_reranker(data, resolve_base(str(tiny_embedder)), embedder, tiny_settings, tmp_path / "first")
    tame = tiny_settings.model_copy(update={"learning_rate": 1e-12, "seed": 99})
    train_reranker(data, resolve_base(str(tmp_path / "first")), embedder, tame, tmp_path / "second")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    torch.testing.assert_close(other["classifier.weight"], one["classifier.weight"], rtol=1e-4, atol=1e-6)


def test_no_model_in_a_run_has_seen_its_hold_out(train: Train, tmp_path: Path) -> None:
    train("seen", holdout_share=0.0, epochs=1.0)
    with pytest.raises(ConfigError, match=r"it may have seen.*--holdout-share 0"):
        train_embedder(
            read_training_data(tmp_path / "data"),
            resolve_base(str(tmp_path / "seen")),
            TrainSettings(max_tokens=48, epochs=1, batch_size=8, holdout_share=0.2),
            tmp_path / "out",
        )


def test_a_reranker_is_not_measured_on_skills_that_its_embedder_has_seen(
    train: Train, tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path
) -> None:
    train("embedder", holdout_share=0.1, epochs=1.0)
    data, base = read_training_data(tiny_data), resolve_base(str(tiny_embedder))
    embedder = resolve_base(str(tmp_path / "embedder"))
    with pytest.raises(ConfigError, match=r"--holdout-share 0\.1"):
        train_reranker(data, base, embedder, tiny_settings, tmp_path / "out")


def test_the_learning_rate_rises_from_the_first_step_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, steps=100, warmup=10, linear=False) for step in range(101)]
    assert shares[:3] == [0.1, 0.2, 0.3]
    assert max(shares) == shares[10] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.0)
    assert learning_rate_share(55, steps=100, warmup=10, linear=True) == pytest.approx(0.5)


def test_the_command_prints_the_card(
    tiny_embedder: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(tiny_data), "--base", str(tiny_embedder), "--max-tokens", "48", "--epochs", "1", "--json"]
    assert main(["train", "embedder", *common, "--out", str(tmp_path / "e")]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["digest"] == read_card(tmp_path / "e").digest
    assert main(["train", "reranker", *common, "--embedder", str(tmp_path / "e"), "--out", str(tmp_path / "r")]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["digest"] == read_card(tmp_path / "r").digest


def test_the_card_command_writes_a_stock_model(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", "--base", str(tiny_embedder), "--out", str(tmp_path / "s"), "--max-tokens", "32"]) == 0
    assert read_card(tmp_path / "s", verify_weights=True).short_digest in capsys.readouterr().out


def test_an_unusable_base_is_a_usage_error(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "embedder", "--data", str(tiny_data), "--base", "org/name", "--out", str(tmp_path / "e")]
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "ConfigError"
