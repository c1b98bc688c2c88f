"""Requests and the skills that fit them → weights with their card: fine-tuning an embedder and a reranker."""

from skillserve_training.average import average_embedders
from skillserve_training.base import resolve_base
from skillserve_training.cards import draft_card
from skillserve_training.dataset import TrainingData, folds, hold_out
from skillserve_training.embedder import train_embedder
from skillserve_training.loader import read_none_requests, read_training_data
from skillserve_training.reranker import train_reranker
from skillserve_training.weights import write_stock

__all__ = [
    "TrainingData",
    "average_embedders",
    "draft_card",
    "folds",
    "hold_out",
    "read_none_requests",
    "read_training_data",
    "resolve_base",
    "train_embedder",
    "train_reranker",
    "write_stock",
]
