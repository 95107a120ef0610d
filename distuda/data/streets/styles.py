"""The looks of the streets: each style is one domain, told apart by light, air, layout and sensor."""

from dataclasses import dataclass, field

from distuda.data.streets.mesh import Colour

Light = tuple[float, float, float]
Range = tuple[float, float]

BRIGHT = (
    (214, 196, 160), (226, 214, 190), (196, 120, 84), (176, 92, 70), (222, 186, 130),
    (200, 206, 210), (188, 160, 140), (168, 186, 176), (232, 226, 214), (206, 150, 120),
)  # fmt: skip
URBAN = (
    (150, 136, 122), (128, 118, 112), (164, 100, 78), (140, 84, 66), (178, 166, 150),
    (120, 126, 134), (196, 180, 156), (110, 96, 90), (158, 150, 148),
)  # fmt: skip
PALE = (
    (206, 202, 194), (190, 188, 182), (216, 208, 192), (176, 168, 158), (198, 176, 158),
    (166, 174, 176), (220, 220, 216),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a street is built and who is on it; ranges are uniform, shares are probabilities."""

    floors: tuple[int, int] = (2, 5)
    """Fewest and most floors of a building."""
    gap_share: float = 0.2
    """Share of plots without a building."""
    pitched_share: float = 0.5
    """Share of buildings with a pitched roof."""
    brick_share: float = 0.35
    setback_m: Range = (0.0, 2.0)
    """Distance from pavement to facade."""
    facades: tuple[Colour, ...] = BRIGHT
    tree_spacing_m: Range = (9.0, 22.0)
    tree_tints: tuple[Colour, ...] = ((96, 128, 52), (80, 120, 56), (118, 138, 60))
    conifer_share: float = 0.1
    fence_share: float = 0.4
    parked_share: float = 0.4
    """Share of parking places that are taken."""
    driving: tuple[int, int] = (1, 4)
    """Fewest and most moving cars."""
    people: tuple[int, int] = (4, 10)
    cyclists: tuple[int, int] = (1, 3)
    signs: tuple[int, int] = (1, 4)
    lamp_spacing_m: Range = (22.0, 32.0)
    asphalt: tuple[Colour, ...] = ((112, 112, 114), (124, 122, 118), (100, 102, 108))
    paving: tuple[Colour, ...] = ((168, 162, 152), (178, 174, 168), (158, 146, 134))


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Sky colours in [0, 1] and clouds."""

    zenith: Light
    horizon: Light
    cloud: Light
    cloud_share: Range
    """Share of the sky that is clouded, a range over scenes."""


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """The camera's own marks."""

    exposure: Range = (0.9, 1.1)
    gain: Light = (1.0, 1.0, 1.0)
    """White balance error, a factor a channel."""
    saturation: float = 1.0
    contrast: float = 1.0
    """Slope of the tone curve about mid-grey."""
    blur_px: float = 0.45
    """Standard deviation of the lens blur at 320 pixels width."""
    noise: float = 0.008
    """Standard deviation of the noise at mid-grey, on a scale of [0, 1]."""
    vignette: float = 0.12
    """Loss of light in the corners."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """One domain. Colours of light are factors on albedo, a white wall under 1.0 is white."""

    about: str
    sky: Sky
    sun: Light
    ambient: Light
    sun_height: Range = (0.6, 1.2)
    """Elevation of the sun above the horizon, radians."""
    sun_shadow: float = 0.5
    """Darkening of the ground in cast shadow."""
    haze: float = 0.002
    """Extinction of the air a metre."""
    air: Light = (0.8, 0.86, 0.94)
    lit_windows: float = 0.0
    """Share of windows with a light on."""
    lamps: float = 0.0
    """Strength of street lamps and headlights, 0 = off."""
    lamp_colour: Light = (1.0, 0.78, 0.48)
    bloom: float = 0.0
    """Strength of the glow around lights."""
    wet: float = 0.0
    """Strength of reflections on the road."""
    texture: float = 1.0
    """Strength of surface texture."""
    layout: Layout = field(default_factory=Layout)
    sensor: Sensor = field(default_factory=Sensor)


STYLES: dict[str, Style] = {
    "day": Style(
        about="clear midday, hard shadows, mixed low town",
        sky=Sky(
            zenith=(0.30, 0.52, 0.86), horizon=(0.78, 0.87, 0.96), cloud=(0.97, 0.97, 0.98), cloud_share=(0.05, 0.95)
        ),
        sun=(0.80, 0.75, 0.64),
        ambient=(0.53, 0.56, 0.63),
        sensor=Sensor(exposure=(0.72, 1.2)),
    ),
    "dusk": Style(
        about="sunset, long warm light, dense inner town with many cars and few trees",
        sky=Sky(
            zenith=(0.36, 0.42, 0.62), horizon=(1.0, 0.78, 0.52), cloud=(0.86, 0.58, 0.52), cloud_share=(0.15, 0.5)
        ),
        sun=(0.46, 0.26, 0.12),
        ambient=(0.40, 0.38, 0.44),
        sun_height=(0.12, 0.25),
        sun_shadow=0.15,
        haze=0.0045,
        air=(0.72, 0.50, 0.40),
        lit_windows=0.32,
        lamps=0.35,
        bloom=0.9,
        texture=1.3,
        layout=Layout(
            floors=(3, 8),
            gap_share=0.08,
            pitched_share=0.25,
            brick_share=0.5,
            setback_m=(0.0, 0.5),
            facades=URBAN,
            tree_spacing_m=(24.0, 60.0),
            tree_tints=((112, 104, 48), (128, 92, 44), (88, 100, 48)),
            fence_share=0.2,
            parked_share=0.7,
            driving=(3, 7),
            people=(5, 12),
            cyclists=(1, 3),
            signs=(2, 6),
            lamp_spacing_m=(18.0, 26.0),
            asphalt=((92, 92, 98), (104, 100, 100)),
            paving=((140, 132, 126), (152, 146, 142)),
        ),
        sensor=Sensor(
            exposure=(0.9, 1.2), gain=(1.06, 0.98, 0.95), contrast=1.05, noise=0.020, blur_px=0.55, vignette=0.25
        ),
    ),
    "fog": Style(
        about="thick morning fog, wet suburb with gardens, hedges and fences",
        sky=Sky(
            zenith=(0.70, 0.72, 0.74), horizon=(0.74, 0.76, 0.77), cloud=(0.72, 0.74, 0.76), cloud_share=(0.0, 0.3)
        ),
        sun=(0.05, 0.05, 0.05),
        ambient=(0.62, 0.64, 0.66),
        sun_shadow=0.0,
        haze=0.019,
        air=(0.74, 0.76, 0.77),
        lit_windows=0.06,
        lamps=0.15,
        bloom=0.8,
        wet=0.25,
        texture=0.8,
        layout=Layout(
            floors=(1, 3),
            gap_share=0.35,
            pitched_share=0.85,
            brick_share=0.3,
            setback_m=(2.0, 5.0),
            facades=PALE,
            tree_spacing_m=(7.0, 16.0),
            tree_tints=((86, 112, 58), (104, 112, 60), (72, 98, 58)),
            conifer_share=0.4,
            fence_share=0.8,
            parked_share=0.25,
            driving=(0, 3),
            people=(2, 7),
            cyclists=(0, 3),
            signs=(0, 3),
            asphalt=((84, 88, 92), (96, 98, 100)),
            paving=((128, 128, 124), (138, 136, 134)),
        ),
        sensor=Sensor(gain=(0.97, 1.0, 1.05), saturation=0.85, contrast=0.95, blur_px=0.8, noise=0.010, vignette=0.1),
    ),
    "night": Style(
        about="late evening in town under sodium lamps, headlights on wet asphalt",
        sky=Sky(
            zenith=(0.06, 0.08, 0.15), horizon=(0.22, 0.18, 0.19), cloud=(0.19, 0.16, 0.17), cloud_share=(0.1, 0.6)
        ),
        sun=(0.02, 0.02, 0.03),
        ambient=(0.17, 0.175, 0.23),
        sun_shadow=0.0,
        haze=0.006,
        air=(0.14, 0.12, 0.135),
        lit_windows=0.3,
        lamps=1.0,
        bloom=1.5,
        wet=0.5,
        texture=1.1,
        layout=Layout(
            floors=(2, 6),
            gap_share=0.12,
            pitched_share=0.35,
            brick_share=0.5,
            setback_m=(0.0, 1.0),
            facades=URBAN,
            tree_spacing_m=(14.0, 34.0),
            fence_share=0.35,
            parked_share=0.55,
            driving=(1, 5),
            people=(3, 9),
            cyclists=(0, 3),
            signs=(1, 5),
            lamp_spacing_m=(16.0, 24.0),
            asphalt=((88, 88, 92), (100, 98, 98)),
            paving=((146, 140, 132), (156, 150, 146)),
        ),
        sensor=Sensor(exposure=(1.05, 1.45), gain=(1.04, 1.0, 0.94), noise=0.026, blur_px=0.6, vignette=0.3),
    ),
}
