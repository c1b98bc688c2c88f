"""Averaged embedders: the mean of the weights, of models that belong together, measured on what none has seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillserve.card import read_card, write_card
from skillserve.cli import main
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training import average_embedders, read_training_data, resolve_base, train_embedder

Average = Callable[..., Path]


@pytest.fixture
def models(tiny_embedder: Path, tiny_data: Path, tiny_settings: TrainSettings, tmp_path: Path) -> list[Path]:
    """Two short runs that differ in their seed."""
    data, base = read_training_data(tiny_data), resolve_base(str(tiny_embedder))
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        train_embedder(data, base, tiny_settings.model_copy(update={"seed": seed, "epochs": 1.0}), folder)
    return folders


def average(models: list[Path], data: Path, out: Path, *, share: float = 0.2) -> None:
    settings = TrainSettings(holdout_share=share, precision="float32")
    average_embedders(read_training_data(data), [resolve_base(str(model)) for model in models], settings, out)


def test_every_weight_is_the_mean_and_the_card_names_the_models(
    models: list[Path], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "average"
    limits = ["--holdout-share", "0.2", "--precision", "float32"]
    command = ["train", "average", *map(str, models), "--data", str(tiny_data), "--out", str(out), *limits, "--json"]
    assert main(command) == 0
    one, two, both = (load_file(folder / "model.safetensors") for folder in (*models, out))
    assert set(one) == set(both)
    assert any(not torch.equal(one[name], two[name]) for name in one)
    for name, weight in both.items():
        torch.testing.assert_close(weight, (one[name] + two[name]) / 2)
    card = read_card(out, verify_weights=True)
    assert json.loads(capsys.readouterr().out)["card"] == card.model_dump()
    trained = [read_card(folder) for folder in models]
    assert [model["digest"] for model in card.training["averaged"]] == [model.digest for model in trained]
    alone = [model.training["holdout_ndcg_at_10"]["after"] for model in trained]
    assert [model["holdout_ndcg_at_10"] for model in card.training["averaged"]] == alone
    assert card.training["holdout_ndcg_at_10"]["best_of_them"] == max(alone)
    assert card.training["parts"] == trained[0].training["parts"]


def test_a_mean_of_equal_weights_measures_what_they_did(models: list[Path], tiny_data: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(models[0], tmp_path / "twin")
    write_card(twin, read_card(twin).model_copy(update={"name": "twin"}))
    average([models[0], twin], tiny_data, tmp_path / "average")
    figures = read_card(tmp_path / "average").training["holdout_ndcg_at_10"]
    assert figures["after"] == figures["best_of_them"]


def test_one_model_twice_is_refused(models: list[Path], tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each of them once"):
        average([models[0], models[0]], tiny_data, tmp_path / "average")


def test_a_stock_model_is_refused(models: list[Path], tiny_data: Path, tiny_embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no card of a trained embedder"):
        average([models[0], tiny_embedder], tiny_data, tmp_path / "average")


def test_models_that_read_texts_differently_are_refused(models: list[Path], tiny_data: Path, tmp_path: Path) -> None:
    write_card(models[1], read_card(models[1]).model_copy(update={"query_prompt": "find: "}))
    with pytest.raises(ConfigError, match="another query_prompt than"):
        average(models, tiny_data, tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_models_that_may_have_seen_the_hold_out_are_refused(
    models: list[Path], tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--holdout-share 0\.2"):
        average(models, tiny_data, tmp_path / "average", share=0.4)


def test_an_average_that_ranks_worse_says_so(
    models: list[Path], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second model's weights are noise under a card that says nothing of it."""
    torch.manual_seed(0)
    noise = {name: 5 * torch.randn_like(weight) for name, weight in load_file(models[1] / "model.safetensors").items()}
    save_file(noise, models[1] / "model.safetensors", metadata={"format": "pt"})
    write_card(models[1], read_card(models[1]))
    average(models, tiny_data, tmp_path / "average")
    assert f"less than {models[0]}" in capsys.readouterr().err
