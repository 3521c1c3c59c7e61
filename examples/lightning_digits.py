"""Lightning and torchmetrics: handwritten digits with Trainer(accelerator="trn").

python examples/lightning_digits.py --epochs 5
"""

import argparse
import warnings

import lightning.pytorch as pl
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

Batch = tuple[Tensor, Tensor]


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10)
        )
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.confusion = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=10)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Batch, index: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy(logits, labels)
        self.confusion(logits, labels)
        self.log("accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", default="32-true", help="or bf16-mixed")
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    pl.seed_everything(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    training, validation = random_split(data, [0.8, 0.2])
    trainer = pl.Trainer(
        accelerator=options.device,
        devices=1,
        precision=options.precision,
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Digits()
    loader = DataLoader(validation, 128)
    trainer.fit(model, DataLoader(training, 64, shuffle=True, drop_last=True), loader)
    (result,) = trainer.validate(model, loader, verbose=False)
    most = int(model.confusion.compute().fill_diagonal_(0).max())
    device = trainer.strategy.root_device
    print(f"on {device}: accuracy {result['accuracy']:.2%}, most confused {most}")


if __name__ == "__main__":
    main()
