"""Models small enough to export in a second, shared by the tests of several rooms.

They are made with transformers alone, not with the training room, so that a test of one room does not lean on
another one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from skillserve.card import ModelCard, write_card
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME

SAMPLE = Path(__file__).parent.parent / "examples" / "sample"

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The sample catalogue that ships with the project."""
    return SAMPLE


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer.json that knows the special tokens, letters and a few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["find", "skill", "sql", "query", "deploy", "test", "agent", "the", "and", "log", "index", "plan"]
    punctuation = list("|,.-:;!?()[]{}<>/_'\"`#*=+")
    pieces = [*_SPECIAL, *_LETTERS, *punctuation, *(f"##{letter}" for letter in _LETTERS), *words]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))  # noqa: S106 -- a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(_SPECIAL)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 split a text before byte pairs are merged, from their tokenizer.json."""


@pytest.fixture(scope="session")
def tiny_bpe_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer.json built like Qwen3's: its normaliser, split and added tokens; few merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = (SAMPLE / "skills" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    # Seams that merge: a full stop or a bracket with the line break behind it, a blank with the word behind it.
    texts = ["yes no", *lines[:40], *("end.\nNext (one)\n\n?!\n caf\u00e9 \u4e2d\u6587\n" for _ in range(20))]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts + ["yes no"] * 50, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _make_weights(folder: Path, tokenizer: Path, role: str, pooling: str | None, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(seed)
    vocab_size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    model = (BertModel if role == "embedder" else BertForSequenceClassification)(config).eval()
    with torch.no_grad():
        # The default initialisation is so small that everything looks alike; real models are not like that.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    write_card(
        folder,
        ModelCard(
            name=f"tiny-{role}-{pooling}",
            role=role,
            family="bert",
            dim=32 if role == "embedder" else None,
            vocab_size=vocab_size,
            max_tokens=48,
            max_query_tokens=20,
            pooling=pooling,
            normalised=role == "embedder",
            frame=BERT_SINGLE_FRAME if role == "embedder" else BERT_PAIR_FRAME,
            score_kind="cosine" if role == "embedder" else "logit",
            base_model="random",
            base_revision="0",
            licence="Apache-2.0",
        ),
    )
    return folder


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Weights folder of a random BERT embedder with mean pooling."""
    return _make_weights(tmp_path_factory.mktemp("embedder"), tiny_tokenizer, "embedder", "mean", seed=1)


@pytest.fixture(scope="session")
def tiny_cls_embedder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Weights folder of a random BERT embedder with CLS pooling."""
    return _make_weights(tmp_path_factory.mktemp("cls-embedder"), tiny_tokenizer, "embedder", "cls", seed=2)


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Weights folder of a random BERT cross-encoder."""
    return _make_weights(tmp_path_factory.mktemp("reranker"), tiny_tokenizer, "reranker", None, seed=3)
