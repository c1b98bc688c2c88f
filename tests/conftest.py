"""Models small enough to export in a second, shared by the tests of several rooms.

They are made with transformers alone, not with the training room, so that a test of one room does not lean on
another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from skillserve.card import ModelCard, write_card
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME

# How long an example takes says more about the machine than about the code.
settings.register_profile("skillserve", deadline=None)
settings.load_profile("skillserve")

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
    # Seams that merge: a full stop or a bracket with the line break behind it, a blank with the word behind it.
    texts = ["yes no", *_sample_texts(), *("end.\nNext (one)\n\n?!\n caf\u00e9 \u4e2d\u6587\n" for _ in range(20))]
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


def _sample_texts() -> list[str]:
    return (SAMPLE / "skills" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture(scope="session")
def tiny_unigram_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Unigram tokenizer.json built like XLM-RoBERTa's: words that begin with `▁`, its special tokens and template."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)  # noqa: S106 -- a token of text
    tokenizer.train_from_iterator(_sample_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    path = tmp_path_factory.mktemp("unigram") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_modern_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer.json built like ModernBERT's: BERT's special tokens, runs of blanks as added ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_sample_texts(), trainer)
    tokenizer.add_tokens([AddedToken(" " * run, normalized=True) for run in (8, 4, 2)])
    tokenizer.add_tokens([AddedToken("|||IP_ADDRESS|||", normalized=True)])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    edges = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=edges
    )
    path = tmp_path_factory.mktemp("modern") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def make_base(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Path,
    tiny_bpe_tokenizer: Path,
    tiny_unigram_tokenizer: Path,
    tiny_modern_tokenizer: Path,
) -> Callable[..., Path]:
    """Write a random model as others publish one, without a card: `make(family, role, seed=…, dtype=…, **config)`."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    small = {"num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = small | {"hidden_size": 32, "intermediate_size": 64, "num_labels": 1}
    decoder = small | {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
    # Name in transformers, what its reranker is called, tokenizer, configuration.
    families: dict[str, tuple[str, str, Path, dict[str, Any]]] = {
        "bert": ("Bert", "ForSequenceClassification", tiny_tokenizer, encoder | {"max_position_embeddings": 64}),
        "xlm-roberta": (
            *("XLMRoberta", "ForSequenceClassification", tiny_unigram_tokenizer),
            encoder | {"max_position_embeddings": 66, "type_vocab_size": 1},
        ),
        # Local layers and global ones, and a window much shorter than the longest sequence.
        "modernbert": (
            *("ModernBert", "ForSequenceClassification", tiny_modern_tokenizer),
            encoder | {"num_hidden_layers": 4, "max_position_embeddings": 256, "local_attention": 16},
        ),
        "late-bert": ("Bert", "Model", tiny_tokenizer, encoder | {"max_position_embeddings": 64}),
        # More ids than the tokenizer knows, as in the real ones.
        "qwen3": (
            *("Qwen3", "ForCausalLM", tiny_bpe_tokenizer),
            decoder | {"vocab_size": 1100, "max_position_embeddings": 512, "tie_word_embeddings": True},
        ),
    }

    def make(family: str, role: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: object) -> Path:
        name, reranker, tokenizer, facts = families[family]
        late = {}
        if family == "late-bert":
            late = {"window": config.pop("window", 6), "scale": config.pop("scale", 10.0)}
        known = Tokenizer.from_file(str(tokenizer))
        facts = {"vocab_size": known.get_vocab_size()} | facts
        for key, token in (("pad", "[PAD]"), ("cls", "[CLS]"), ("bos", "[CLS]"), ("sep", "[SEP]"), ("eos", "[SEP]")):
            if family == "modernbert":
                facts[f"{key}_token_id"] = known.token_to_id(token)
        torch.manual_seed(seed)
        kind = getattr(transformers, name + (reranker if role == "reranker" else "Model"))
        model = kind(getattr(transformers, f"{name}Config")(**facts | config))
        with torch.no_grad():
            # The default initialisation is so small that everything looks alike; real models are not like that.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5.0)
        folder = tmp_path_factory.mktemp(family) / f"tiny-{family}"
        model.to(dtype).save_pretrained(folder, safe_serialization=True)
        if late:
            _add_late_interaction(folder, known, **late)
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        return folder

    return make


def _add_late_interaction(folder: Path, tokenizer: Any, **score: object) -> None:
    """Make of a BERT what late interaction is trained to: the encoder by its name, and random weights of tokens."""
    import torch
    from safetensors.torch import load_file, save_file

    encoder = load_file(folder / "model.safetensors")
    weights = torch.rand(tokenizer.get_vocab_size()) * 6 + 0.05
    weights[[tokenizer.token_to_id(mark) for mark in ("[CLS]", "[SEP]")]] = 0
    tensors = {f"bert.{name}": tensor for name, tensor in encoder.items() if not name.startswith("pooler.")}
    save_file(tensors | {"token_weights": weights}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    facts = {"model_type": "late-bert", "architectures": ["LateBertModel"], **score}
    (folder / "config.json").write_text(json.dumps(config | facts))


@pytest.fixture(scope="session")
def late_states() -> Callable[[Path, Any], Any]:
    """What late interaction compares of one text, `[length, H]` float64: transformers' states, of length 1."""
    from functools import cache

    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    @cache
    def opened(folder: Path) -> Any:
        tensors = load_file(folder / "model.safetensors")
        facts = json.loads((folder / "config.json").read_bytes())
        config = BertConfig(**{name: facts[name] for name in facts if name != "model_type"})
        model = BertModel(config, add_pooling_layer=False).eval()
        encoder = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name != "token_weights"}
        model.load_state_dict(encoder)
        return model

    @cache
    def read(folder: Path, text: tuple[int, ...]) -> Any:
        with torch.no_grad():
            hidden = opened(folder)(input_ids=torch.tensor([text])).last_hidden_state[0].double()
        return hidden / hidden.norm(dim=1, keepdim=True)

    return lambda folder, text: read(folder, tuple(int(token) for token in text))


@pytest.fixture(scope="session")
def late_weights() -> Callable[[Path], list[float]]:
    """What each token id weighs in late interaction."""
    from functools import cache

    from safetensors.torch import load_file

    return cache(lambda folder: load_file(folder / "model.safetensors")["token_weights"].tolist())


@pytest.fixture(scope="session")
def late_score(
    late_states: Callable[[Path, Any], Any], late_weights: Callable[[Path], list[float]]
) -> Callable[[Path, Any], float]:
    """What late interaction says of one pair: transformers' BERT on either side alone, loops over tokens."""
    import math
    from functools import cache

    from tokenizers import Tokenizer

    @cache
    def score_facts(folder: Path) -> tuple[dict[str, Any], int]:
        opening = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("[CLS]")
        return json.loads((folder / "config.json").read_bytes()), opening

    def score(folder: Path, pair: Any) -> float:
        facts, opening = score_facts(folder)
        weights = late_weights(folder)
        ids = tuple(int(token) for token in pair)
        cut = ids.index(opening, 1)
        cosines = late_states(folder, ids[:cut]) @ late_states(folder, ids[cut:]).T
        offers = [place for place, token in enumerate(ids[cut:]) if weights[token] > 0]
        nearest = [max((float(row[place]) for place in offers), default=-1.0) for row in cosines]
        size = min(facts["window"], cut)
        means = []
        for start in range(cut - size + 1):
            stretch = range(start, start + size)
            weight = math.fsum(weights[ids[place]] for place in stretch)
            means.append(math.fsum(weights[ids[place]] * nearest[place] for place in stretch) / weight if weight else 0)
        return float(facts["scale"] * max(means))

    return score


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
