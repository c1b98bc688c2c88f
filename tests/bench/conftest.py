"""Tiny models as stock ones come: their tokenizer.json itself adds the special tokens of a sequence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from skillserve.card import read_card, write_card
from skillserve.settings import ExportSettings
from skillserve_export import export_model


@pytest.fixture(scope="session")
def stock_embedder(tiny_embedder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights folder of the tiny embedder whose tokenizer frames what it encodes, as other libraries expect."""
    return _stock(tiny_embedder, tmp_path_factory.mktemp("stock") / "embedder")


@pytest.fixture(scope="session")
def stock_reranker(tiny_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the tiny cross-encoder."""
    return _stock(tiny_reranker, tmp_path_factory.mktemp("stock") / "reranker")


@pytest.fixture(scope="session")
def packed(stock_embedder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the tiny embedder, packed."""
    folder = tmp_path_factory.mktemp("packed")
    export_model(stock_embedder, ExportSettings(repository=folder))
    return folder


def _stock(weights: Path, folder: Path) -> Path:
    shutil.copytree(weights, folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.save(str(path))
    write_card(folder, read_card(folder).model_copy(update={"digest": ""}))
    return folder
