"""The fully convolutional domain discriminator of output-space adaptation.

Tsai et al., "Learning to Adapt Structured Output Space", CVPR 2018, section 3.2; ADVENT uses the same network on
entropy maps.
"""

from itertools import pairwise

from torch import Tensor, nn

from distuda.errors import UserError


class Discriminator(nn.Module):
    """Five 4x4 convolutions of stride 2 with LeakyReLU(0.2) between them and no normalisation.

    Args:
        in_channels: channels of the map it judges: C classes, or 2C for a pair of video frames.
        width: channels after the first convolution, doubled by each of the next three.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        channels = [in_channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1))

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Float maps (B, C, H, W), H and W of at least 32, to logits (B, 1, H // 32, W // 32).

        One logit judges one patch; the losses average over them, with 0 for the source domain and 1 for the target.
        """
        if min(maps_BCHW.shape[-2:]) < 32:
            raise UserError(
                f"discriminators need crops of at least 32x32 pixels, not {maps_BCHW.shape[-1]}x{maps_BCHW.shape[-2]}. "
                "Enlarge augment.crop."
            )
        logits: Tensor = self.layers(maps_BCHW)
        return logits
