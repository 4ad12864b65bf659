"""A timm network as a certframe model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from PIL.Image import Image, Resampling
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn

from certframe import Split, TorchModel


class TimmClassifier(TorchModel):
    """Any network that timm builds, with the input size, normalisation and cropping of its configuration.

    ``final`` is what the network's `forward_features` returns, as timm's own. Where the head reads the class token
    alone, the patch tokens of that are without influence, and ``final`` is the input of the last attention block after
    its first layer norm (``blocks.<last>.norm1``), the layer that the Grad-CAM literature uses for vision transformers.

    Args:
        network: a network from `timm.create_model`.
    """

    def __init__(self, network: nn.Module) -> None:
        config = resolve_model_data_config(network)
        super().__init__(network, tuple(config["input_size"]), class_names(network), mean=config["mean"],
                         std=config["std"], interpolation=config["interpolation"], crop_pct=config["crop_pct"])
        self.crop_mode = config["crop_mode"]
        self.leaf_modules = tuple(get_notrace_modules())
        self.leaf_functions = tuple(f for f in get_notrace_functions() if callable(f))

    def fit(self, picture: Image) -> Image:
        """Resize and crop as the network was trained: keeping the proportions, or squashed to those of the input."""
        if self.crop_mode == "squash":
            picture = picture.resize(self._squashed(), Resampling[self.interpolation.upper()])
        return super().fit(picture)

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of that size that the model sees after `fit`; see `certframe.TorchModel.window`."""
        if self.crop_mode != "squash":
            return super().window(width, height)
        wide, tall = self._squashed()
        left, top, right, bottom = super().window(wide, tall)
        return left * width / wide, top * height / tall, right * width / wide, bottom * height / tall

    def _squashed(self) -> tuple[int, int]:
        _, height, width = self.input_size
        return int(width / self.crop_pct), int(height / self.crop_pct)

    def final(self) -> Split:
        """The last feature map whose cells, or most of them, can move the logits."""
        if hasattr(self.network, "forward_features") and hasattr(self.network, "forward_head"):
            split = self._features()
            if self._mixes(split):
                return split
        blocks = getattr(self.network, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "norm1"):
            split = self.cut(f"blocks.{len(blocks) - 1}.norm1")
            if self._mixes(split):
                return split
        return super().final()

    def as_map(self, activation: Tensor) -> Tensor:
        """View an activation as feature maps (B,K,h,w); tokens are laid out on the network's patch grid."""
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        if activation.ndim == 3 and grid:
            prefix = int(getattr(self.network, "num_prefix_tokens", 0))
            if activation.shape[1] == prefix + grid[0] * grid[1]:
                return activation[:, prefix:].transpose(1, 2).reshape(len(activation), -1, *grid)
        return super().as_map(activation)

    def _features(self) -> Split:
        network, normalise = self.network, self.module.get_submodule("normalise")

        def body(x: Tensor) -> tuple[Tensor, ...]:
            return (network.forward_features(normalise(x)),)  # type: ignore[operator]

        def head(activation: Tensor) -> Tensor:
            # A head may begin with an activation that works in place.
            logits: Tensor = network.forward_head(activation.clone())  # type: ignore[operator]
            return logits

        return Split(body, head, self.as_map)

    def _mixes(self, split: Split) -> bool:
        """Whether the halves are the model, and most cells of the map between them have influence on the logits."""
        x = self.example()
        with torch.no_grad():
            expected = self.module(x)
            activation, *carried = split.body(x)
        if not isinstance(activation, Tensor) or activation.ndim not in (3, 4):
            return False
        with torch.enable_grad():
            activation = activation.requires_grad_()
            logits = split.head(activation, *carried)
            if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-4, atol=1e-5):
                return False
            weights = torch.linspace(-1, 1, logits.shape[1]).cos().to(logits)
            gradient, = torch.autograd.grad((logits * weights).sum(), activation)
        cells = self.as_map(gradient).abs().sum(1)
        return cells[0].numel() > 1 and float((cells > 0).float().mean()) > 0.5


def class_names(network: nn.Module) -> Sequence[str]:
    """One short name per logit: from the network's configuration, or ImageNet's; numbers when neither fits."""
    count = int(network.num_classes)  # type: ignore[arg-type]
    labels = (getattr(network, "pretrained_cfg", None) or {}).get("label_names")
    if labels and len(labels) == count:
        return tuple(labels)
    subset = infer_imagenet_subset(network)
    return imagenet_names(subset) if subset else tuple(str(i) for i in range(count))


def imagenet_names(subset: str) -> Sequence[str]:
    """WordNet's first word for every class, with the synset in brackets where two classes share it (crane, maillot)."""
    info = ImageNetInfo(subset)
    words = [description.split(",")[0].strip() for description in info.label_descriptions()]
    count = Counter(words)
    return tuple(word if count[word] == 1 else f"{word} ({synset})"
                 for word, synset in zip(words, info.label_names(), strict=True))
