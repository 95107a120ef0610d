"""Seven numbers an image that show at a glance how two cameras, renderers or times of day differ."""

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.decode import resize_image

STAT_WIDTH = 320
"""Width that every image has when it is measured, pixels, so that sharpness compares over sizes."""

STATISTICS = {
    "brightness": "mean of the luma (Rec. 601), 0 to 1",
    "contrast": "standard deviation of the luma, 0 to 0.5",
    "sharpness": "mean absolute Laplacian (4 neighbours) of the luma, 0 to 4; blur lowers it, noise raises it",
    "saturation": "mean HSV saturation, 0 to 1",
    "red": "mean of the red channel, 0 to 1",
    "green": "mean of the green channel, 0 to 1",
    "blue": "mean of the blue channel, 0 to 1",
}
"""What is measured, in the order of `image_statistics`, on the image at `STAT_WIDTH`."""


def image_statistics(image_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The numbers of `STATISTICS` for one uint8 RGB image of any size, float64 (7,)."""
    height = max(1, round(image_HWC.shape[0] * STAT_WIDTH / image_HWC.shape[1]))
    small = resize_image(image_HWC, (height, STAT_WIDTH))
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    edges = np.abs(cv2.Laplacian(luma, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101))
    saturation = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)[..., 1]
    channels = small.reshape(-1, 3).mean(axis=0) / 255
    return np.array(
        [luma.mean(dtype=np.float64), luma.std(dtype=np.float64), edges.mean(), saturation.mean() / 255, *channels],
        np.float64,
    )
