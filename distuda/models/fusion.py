"""A network whose logits are mixed with those of the frame before, as Accel and DA-VSN do.

Jain, Wang, Gonzalez: Accel, CVPR 2019; Guan et al.: DA-VSN, ICCV 2021, whose released code this follows.
"""

import torch
from torch import Tensor, nn

from distuda.models.segmenter import Output, Segmenter, Wrapper
from distuda.warp import warp


class Fused(Wrapper):
    """Adds one 1x1 convolution a head over [now, the frame before carried here], which starts as "now alone".

    A single image is its own frame before, as if nothing moved: that is what is evaluated and exported, since an
    exported file sees one image.

    Args:
        network: gives the logits of each frame.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__(network)
        self.fusions = nn.ModuleList(_fusion(network.num_classes) for _ in range(2 if network.has_aux else 1))

    def predict(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Output:
        """Each image fused with itself."""
        output = self.network.predict(image_BCHW, seed_B)
        return self.fuse(output, output)

    def fuse(self, now: Output, before: Output, flow_B2HW: Tensor | None = None) -> Output:
        """The logits of now with those of the frame before, carried along the flow; 0 where it leaves that frame.

        Args:
            now, before: of the network itself (`core`).
            flow_B2HW: backward flow, None = nothing moved.
        """
        mixed = []
        for fusion, here, there in zip(self.fusions, (now.main, now.aux), (before.main, before.aux), strict=False):
            assert here is not None and there is not None
            carried = there if flow_B2HW is None else warp(there, flow_B2HW)
            mixed.append(fusion(torch.cat([here, carried.to(here.dtype)], dim=1)))
        return now._replace(main=mixed[0], aux=mixed[1] if len(mixed) > 1 else now.aux)

    def head_parameters(self) -> list[nn.Parameter]:
        """The network's own heads; the fusions start as something and learn at the base rate, as released."""
        return self.network.head_parameters()


def _fusion(num_classes: int) -> nn.Conv2d:
    """2C -> C channels without bias: the first C as they are, nothing of the others."""
    fusion = nn.Conv2d(2 * num_classes, num_classes, 1, bias=False)
    with torch.no_grad():
        fusion.weight.copy_(torch.eye(num_classes, 2 * num_classes)[:, :, None, None])
    return fusion
