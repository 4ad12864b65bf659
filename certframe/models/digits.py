"""A small convolutional network on 8×8 digits, trained, with its weights in the package."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from certframe import protocols
from certframe.torch_model import TorchModel

WEIGHTS = Path(__file__).with_name("digits.safetensors")
INPUT_SIZE = (1, 8, 8)


def digits_network() -> nn.Module:
    """Three convolutions (16, 32 and 32 maps), max-pooling to 4×4 after the second, global average pooling, logits.

    Takes (B,1,8,8) in [0, 1]; 14 k parameters. ``final`` is ``features``, (B,32,4,4).
    """
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(OrderedDict(
        features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(32, 10)))


class Digits(TorchModel):
    """A small convolutional network that reads 8×8 grey digits, 1 for ink; trained, weights included.

    Made by ``scripts/train_digits.py`` on four fifths of scikit-learn's digits, with Gaussian noise added, so that it
    still reads noisy digits. Small and quick enough to try things out on and for tests.

    The data are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine
    Learning Repository, 1998, doi:10.24432/C50P49), licensed under CC BY 4.0.
    """

    class Options(protocols.Options):
        """`digits` has no options."""

    def __init__(self, options: Options | None = None) -> None:
        network = digits_network()
        network.load_state_dict(load_file(WEIGHTS))
        super().__init__(network, INPUT_SIZE, tuple("0123456789"), crop_pct=1.0)
        self.options = options or self.Options()
