"""Recipes: what comes with the package is sound, whose values win, and SkillRet's run end to end on a tiny Qwen3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from skillserve.card import read_card
from skillserve.cli import main
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training.comparison import Comparison
from skillserve_training.forward import score
from skillserve_training.recipe import FROM_EMBEDDER, read_recipe, recipe_names
from skillserve_training.weights import open_reranker, reranker_tokens, score_tokens

SAME_LOSS = 1e-4
"""As the Trainer writes losses down."""


def test_every_recipe_reads_and_names_a_pinned_base() -> None:
    assert {"minilm-embedder", "skillret-embedding-0.6b", "skillret-embedding-8b"} <= set(recipe_names("embedder"))
    assert {"minilm-reranker", "skillret-reranker-0.6b"} <= set(recipe_names("reranker"))
    for name in recipe_names():
        base = read_recipe(name).base
        assert base in ("minilm", FROM_EMBEDDER) or len(base.partition("@")[2]) == 40


def test_the_published_hyper_parameters_are_in_skillrets_recipes() -> None:
    small, large = (read_recipe(f"skillret-embedding-{size}").train for size in ("0.6b", "8b"))
    assert (small.batch_size, large.batch_size) == (384, 80)
    for settings in (small, large, read_recipe("skillret-reranker-0.6b").train):
        assert (settings.learning_rate, settings.warmup_ratio, settings.epochs) == (2e-5, 0.1, 1)
        assert (settings.precision, settings.train_tokens) == ("bfloat16", 8192)
        assert (settings.schedule, settings.weight_decay) == ("linear", 0.0)
    reranker = read_recipe("skillret-reranker-0.6b").train
    assert (reranker.loss, reranker.num_negatives, reranker.ranks) == ("pointwise", 15, "21-60")
    assert not reranker.redraw_negatives
    assert reranker.batch_size * (1 + reranker.num_negatives) == 384


def test_what_the_caller_sets_wins_over_the_recipe_and_the_recipe_over_the_defaults() -> None:
    recipe = read_recipe("sample-reranker")
    # Set to the default on purpose: that it was set is what counts.
    settings = recipe.with_settings(TrainSettings(epochs=TrainSettings().epochs, seed=7))
    assert (settings.epochs, settings.seed) == (2.0, 7)
    assert settings.learning_rate == recipe.train.learning_rate != TrainSettings().learning_rate
    assert settings.scale == TrainSettings().scale


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('role = "embedder"\nbase = "minilm"\nabout = "x"\n[train]\nepoch = 1\n', r"train\.epoch"),
        ('role = "embedder"\nbase = "minilm"\nabout = "x"\n[train]\nranks = "9-3"\n', "3-9"),
        ('base = "minilm"\n', "role"),
        ("role = ", "Invalid value"),
    ],
)
def test_a_faulty_recipe_is_refused_with_its_fault(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=fault):
        read_recipe(str(path))


def test_a_recipe_of_the_other_role_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one for a reranker.*minilm-embedder"):
        read_recipe("minilm-reranker", "embedder")
    with pytest.raises(ConfigError, match=r"no such name or file.*skillret-embedding-0\.6b"):
        read_recipe("nothing", "embedder")


def _report(folder: Path) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = json.loads((folder / "training" / "report.json").read_text())["curves"]
    return curves


def test_skillrets_recipes_run_on_a_tiny_qwen3_and_go_on_when_stopped(
    make_qwen3: Callable[..., Path], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedder, then reranker, with what a random model of two layers needs changed: rate, passes and lengths."""
    common = ["--data", str(tiny_data), "--max-tokens", "320", "--holdout-share", "0.2", "--learning-rate", "2e-3"]
    embedder, base = tmp_path / "embedder", str(make_qwen3("model"))
    arguments = ["--recipe", "skillret-embedding-0.6b", "--base", base, "--batch-size", "8", "--epochs", "4"]
    assert main(["train", "embedder", *common, *arguments, "--precision", "float32", "--out", str(embedder)]) == 0
    loss = _report(embedder)["loss"]
    assert np.mean(loss[-3:]) < 0.8 * np.mean(loss[:3])
    card = read_card(embedder, verify_weights=True)
    assert (card.family, card.pooling, card.query_prompt[:9]) == ("qwen3", "last", "Instruct:")

    arguments = ["--recipe", "skillret-reranker-0.6b", "--base", str(make_qwen3()), "--embedder", str(embedder)]
    arguments += ["--ranks", "2-12", "--num-negatives", "3", "--batch-size", "4", "--epochs", "2", *common]
    arguments += ["--checkpoint-steps", "2", "--precision", "float32", "--evals", "0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(["train", "reranker", *arguments, "--out", str(whole)]) == 0
    step, count = Comparison.backward, iter(range(1, 100))

    def interrupted(self: Comparison, *rest: object) -> torch.Tensor:
        if next(count) == 4:
            raise KeyboardInterrupt
        return step(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Comparison, "backward", interrupted)
    assert main(["train", "reranker", *arguments, "--out", str(stopped)]) == 130
    assert not stopped.exists()
    assert main(["train", "reranker", *arguments, "--out", str(stopped)]) == 0
    assert json.loads((stopped / "training" / "report.json").read_text())["resumed_from"] == 2
    one, other = (_report(folder)["loss"] for folder in (whole, stopped))
    assert other == pytest.approx(one, abs=SAME_LOSS)
    assert np.mean(one[-3:]) < np.mean(one[:3])

    card = read_card(whole, verify_weights=True)
    assert (card.score_kind, card.family) == ("yes_no", "qwen3")
    # The score by the book: all logits of the last token, then the two words.
    model, tokens = open_reranker(whole), reranker_tokens(whole, card)
    pair = tokens.pair(tokens.query("find the sql").ids, tokens.query("sql and test").ids)
    vocabulary = json.loads((whole / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():
        logits = model(torch.from_numpy(pair[None].astype(np.int64))).logits[0, -1]

    found = score(model, [pair], score_tokens(whole)).item()
    assert found == pytest.approx(float(logits[vocabulary["yes"]] - logits[vocabulary["no"]]), abs=1e-4)
