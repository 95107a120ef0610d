"""What tests of exported networks share: images, and the graph's answers against torch's."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distuda.models.segmenter import Segmenter
from export.onnx import Deployed
from export.runtime import Predictor


def images(batch: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise: neighbouring pixels alike, as in photographs."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)
    return np.ascontiguousarray(smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy())


def assert_parity(model: Segmenter, content: bytes, size: tuple[int, int] | None) -> None:
    predictor, deployed = Predictor(content, "cpu", threads=1), Deployed(model.eval(), size)
    for height, width in ((64, 96), (75, 101), (33, 47)):
        for batch in (1, 3):
            image = images(batch, height, width)
            with torch.inference_mode():
                class_map, confidence, logits = (t.numpy() for t in deployed(torch.from_numpy(image)))
            given = predictor.run(image)
            assert given["class_map"].dtype == np.uint8 and given["class_map"].shape == (batch, height, width)
            assert given["confidence"].dtype == np.float32
            assert np.abs(given["logits"] - logits).max() < 1e-4 * max(1.0, np.abs(logits).max())
            assert np.abs(given["confidence"] - confidence).max() < 1e-3
            assert (given["class_map"] == class_map).mean() > 0.999
            assert len(np.unique(class_map)) > 1, "a constant class map shows nothing"
