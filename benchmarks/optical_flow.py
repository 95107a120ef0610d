"""Which DIS: error and time of OpenCV's presets against the exact flow of rendered streets.

    python benchmarks/optical_flow.py

Eight clips of four frames, 320x192, by day and at dusk; pixels that were in sight before. Time is processor time of one
direction on one thread.
"""

import statistics
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from distuda.data.streets import Frame, render_clip

PRESETS = {  # name: (preset, finest scale or None for the preset's own)
    "medium": (cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, None),
    "fast": (cv2.DISOPTICAL_FLOW_PRESET_FAST, None),
    "fast, finest scale 1": (cv2.DISOPTICAL_FLOW_PRESET_FAST, 1),
    "ultrafast": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, None),
    "ultrafast, finest scale 1": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 1),
}


def main() -> None:
    cv2.setNumThreads(1)
    clips = [
        render_clip(style, seed=1, index=i, num_frames=4, size=(192, 320))
        for style in ("day", "dusk")
        for i in range(4)
    ]
    pairs = [(now, before) for clip in clips for now, before in zip(clip[1:], clip, strict=False)]
    print("| preset | error [pixels] | below 1 pixel | ms |\n| --- | --- | --- | --- |")
    for name, (preset, scale) in PRESETS.items():
        dis = cv2.DISOpticalFlow.create(preset)
        if scale is not None:
            dis.setFinestScale(scale)
        errors, seconds = [], []
        for now, before in pairs:
            started_s = time.process_time()
            flow = dis.calc(grey(now), grey(before), None)
            seconds.append(time.process_time() - started_s)
            errors.append(np.linalg.norm(flow - now.flow, axis=-1)[now.flow_valid])
        error = statistics.mean(float(e.mean()) for e in errors)
        near = statistics.mean(float((e < 1).mean()) for e in errors)
        print(f"| {name} | {error:.2f} | {100 * near:.0f} % | {1000 * statistics.mean(seconds):.1f} |")


def grey(frame: Frame) -> NDArray[np.uint8]:
    """What DIS looks at."""
    return np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)


if __name__ == "__main__":
    main()
