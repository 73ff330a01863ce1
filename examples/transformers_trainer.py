"""Hugging Face's Trainer: an image classifier, sparse training by a callback, cut, saved as theirs.

python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import netslim
from netslim.integrations.transformers import SparseTraining

pictures, classes = load_digits(return_X_y=True)
x = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
x = torch.nn.functional.interpolate(x, scale_factor=4)
rows = [{"pixel_values": one, "labels": int(label)} for one, label in zip(x, classes, strict=True)]

SPLIT = len(rows) * 3 // 4


def accuracy(predicted: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    logits, labels = predicted
    return {"accuracy": float((logits.argmax(1) == labels).mean())}


def trainer(model: torch.nn.Module, folder: str, epochs: int, *callbacks: object) -> Trainer:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    options = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        **quiet,
    )
    split = {"train_dataset": rows[:SPLIT], "eval_dataset": rows[SPLIT:]}
    return Trainer(model, options, compute_metrics=accuracy, callbacks=list(callbacks), **split)


def main(epochs: int = 3) -> None:
    torch.manual_seed(0)
    shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    config = ResNetConfig(num_channels=1, layer_type="basic", num_labels=10, **shape)
    model = ResNetForImageClassification(config)
    example: dict[str, Tensor] = {"pixel_values": x[:1]}

    with tempfile.TemporaryDirectory() as folder:
        # AdamW divides gradients by their size: the proximal penalty does not pass through them.
        make = partial(netslim.NetworkSlimming, strength=0.5, penalty="proximal")
        sparse = trainer(model, folder, epochs, SparseTraining(make))
        sparse.train()
        before = sparse.evaluate()["eval_accuracy"]

        half = netslim.Budget(cut_macs=0.5)
        small = netslim.slim(model, example, budget=half, criterion="bn_scale")
        tuned = trainer(small, folder, epochs)
        tuned.train()
        after = tuned.evaluate()["eval_accuracy"]

    macs = [netslim.cost(one, example).macs for one in (model, small)]
    print(f"{macs[0]} -> {macs[1]} multiply-accumulates")
    print(f"accuracy {before:.3f}, cut and fine-tuned {after:.3f}")


if __name__ == "__main__":
    main()
