"""The photographs that scikit-image carries."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from certframe.datasets.photos import Photos
from certframe.errors import UsageError

needs_photos = pytest.mark.skipif(importlib.util.find_spec("skimage") is None,
                                  reason="scikit-image, an optional dependency (certframe[photos]), is not installed")


@needs_photos
def test_they_are_the_pictures_of_scikit_image() -> None:
    data = pytest.importorskip("skimage.data")
    photos = Photos()
    assert [photos.name(i) for i in range(len(photos))] == ["coffee", "chelsea", "motorcycle"]
    for i, array in enumerate((data.coffee(), data.chelsea(), data.stereo_motorcycle()[0])):
        sample = photos.load(i)
        assert sample.name == photos.name(i)
        assert sample.label is None
        assert sample.image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(sample.image), array)


@needs_photos
def test_scikit_image_is_not_imported() -> None:
    code = ("import sys; from certframe.datasets.photos import Photos; Photos().load(0); "
            "sys.exit('skimage' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'certframe\[photos\]'"):
        Photos()


def test_without_the_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(UsageError, match=r"coffee\.png"):
        Photos()
