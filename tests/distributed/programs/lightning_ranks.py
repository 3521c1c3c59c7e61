"""A Lightning script: two devices, strategy as told. Prints the loss of each rank."""

import sys
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, index):
        x, y = batch
        self.loss = F.mse_loss(self.model(x), y)
        return self.loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_train_end(self):
        place = next(self.parameters()).device
        print(f"rank {self.global_rank} of {self.trainer.world_size} on {place}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    pl.seed_everything(0)
    data = TensorDataset(torch.randn(64, 8), torch.randn(64, 1))
    trainer = pl.Trainer(
        accelerator="trn", devices=2, strategy=sys.argv[1], max_steps=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Regression(), DataLoader(data, 8))
