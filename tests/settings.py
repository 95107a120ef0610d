"""What the tests run: every method variant by name, and the tiny recipes, batches and data they are run on."""

from pathlib import Path

import cv2
import numpy as np
import torch

from distuda.data.batch import Batch
from distuda.data.labels import ClassTable
from distuda.data.sample import Sample
from distuda.draws import sample_seed
from distuda.engine.run import build_method
from distuda.methods.method import Method
from distuda.recipe import Recipe, load_recipe

DEEPLAB = ["model.name=deeplabv2_resnet18", "model.weights=none"]
SURE = ["method.name=self_training", "method.confidence=0.3"]  # untrained teachers are never sure by the paper's 0.968
REGRESSION = ["method.name=feature_regression", "method.pairs=synthetic"]

SETTINGS: dict[str, list[str]] = {
    "source_only": ["method.name=source_only"],
    "oracle": ["method.name=source_only", "method.use_target_labels=true"],
    "fine_tuned": ["method.name=source_only", "method.use_target_labels=true", "method.use_source_labels=false"],
    "minent": ["method.name=minent"],
    "minent_range_prior": ["method.name=minent", "method.entropy_range=0.3", "method.class_prior=1"],
    "minent_joint": ["method.name=minent", "method.forward=joint"],
    "advent": ["method.name=advent"],
    "advent_prior": ["method.name=advent", "method.class_prior=1"],
    "advent_multi_level": ["method.name=advent", *DEEPLAB],
    "adaptsegnet": ["method.name=advent", "method.discriminator_input=softmax"],
    "source_only_style": ["augment.style=fourier"],
    "source_only_distance": ["method.lambda_distance=0.01", "method.distance_min_share=0.2",
                             "method.distance_classes=[ground,wall,sky]"],
    "apoda_distance": ["method.name=apoda", "method.lambda_distance=0.01", "method.distance_min_share=0.2"],
    "advent_style": ["method.name=advent", "augment.style=moments", "method.forward=joint"],
    "apoda": ["method.name=apoda"],
    "apoda_multi_level": ["method.name=apoda", "method.attack.normalise=global", *DEEPLAB],
    "apoda_random": ["method.name=apoda", "method.attack.direction=random", "method.attack.layers=[0,1]",
                     "method.discriminate_perturbed=true"],
    "apoda_taught": ["method.name=apoda", "method.self_training.confidence=0.3", "method.into_trunk=false"],
    "feature_regression": [*REGRESSION],
    "feature_regression_layers": [
        *REGRESSION, "method.layers=[0,-1]", "method.layer_weights=[0.5,1]", "method.distance=cosine", *DEEPLAB,
    ],
    "feature_regression_first": [*REGRESSION, "method.layers=[0]", "method.distance=l1"],
    "classify": ["method.name=classify"],
    "classify_bce": ["method.name=classify", "method.loss=bce", *DEEPLAB, "model.multi_level=false"],
    "psl": ["method.name=psl"],
    "psl_tags": ["method.name=psl", "method.confidence=tags", "method.threshold=0.5"],
    "psl_masks_alone": ["method.name=psl", "method.prohibit=false"],
    "vat": ["method.name=vat"],
    "vat_joint": ["method.name=vat", "method.sequence_input=joint", "method.warp=false", *DEEPLAB],
    "vst": ["method.name=vst"],
    "vst_weigh": ["method.name=vst", "method.agreement=weigh", "method.unmatched=drop", *DEEPLAB],
    "vst_frames": ["method.name=vst", "method.agreement=none"],
    "davsn": ["method.name=davsn"],
    "davsn_multi_level": ["method.name=davsn", *DEEPLAB],
    "davsn_plain": ["method.name=davsn", "method.fusion=false"],
    "tps": ["method.name=tps"],
    "tps_plain": ["method.name=tps", "method.fusion=false"],
    "tps_rescaled": ["method.name=tps", "method.rescale=[0.7,1.4]"],
    "tps_sure": ["method.name=tps", "method.confidence=0.3", "augment.style=histogram", *DEEPLAB],
    "self_training": [*SURE],
    "self_training_pixel": [*SURE, "method.weighting=pixel"],
    "self_training_masked": [*SURE, "method.lambda_mask=1", "method.mask_block=8"],
    "self_training_distance": [*SURE, "method.lambda_distance=0.1", "method.distance_min_share=0.2"],
    "self_training_margins": [*SURE, "method.margins=[3,2,1,4]", "augment.flip=0"],
    "self_training_statistics": [
        *SURE, "method.confidence=0.2", "method.statistics=source", "method.calibrate_images=0", "method.lambda_mask=1",
        "method.mask_block=8",
    ],
    "self_training_detail": [*SURE, "model.detail=[16,24]", "method.lambda_mask=1", "method.mask_block=8"],
    "self_training_video": [*SURE, "method.lambda_video=1", "method.flow_agreement=true", "method.weighting=pixel"],
    "self_training_rare": [*SURE, "source.rare_class_temperature=0.1", "source.rare_class_min_pixels=50"],
}  # fmt: skip
"""Recipe overrides by name of the variant; a new method adds its lines here and is tested by all that follows."""

TINY = [
    "model.weights=none", "augment.crop=[32,48]", "batch_size=2", "precision=fp32", "device=cpu",
    "method.name=source_only", "steps=6", "log_every_steps=1",
]  # fmt: skip

CADENCE = ["evaluation.every_steps=3", "checkpoint.every_steps=3", "evaluation.limit=2"]
"""How often a run that is watched in a test evaluates and saves."""

TABLE = ClassTable(
    "tiny4",
    ("ground", "wall", "sky", "lamp"),
    ((90, 60, 30), (150, 20, 20), (60, 120, 200), (250, 230, 90)),
    frozenset({3}),
)


def tiny_recipe(*overrides: str) -> Recipe:
    """A recipe of a run that takes seconds; later words win over earlier ones and over `TINY`."""
    return load_recipe(None, [*TINY, *overrides])


def run_words(domains: list[str], out: Path, *words: str) -> list[str]:
    """Words of a run into ``out``."""
    return [*domains, f"out={out}", *CADENCE, *words]


def tiny_method(recipe: Recipe) -> Method:
    """The recipe's method in training mode, as `fit` builds it."""
    return build_method(recipe, TABLE, torch.tensor([0.5, 0.3, 0.15, 0.05])).train()


def tiny_pictures(count: int, seed: int, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, H, W, 3) and labels (N, H, W): blocks of noisy class colour, some of them ignored."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    blocks = rng.choice([0, 1, 2, 3, 255], (count, rows, columns), p=[0.4, 0.25, 0.2, 0.1, 0.05]).astype(np.uint8)
    labels = blocks.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]
    images = TABLE.colours()[labels].astype(int) + rng.integers(-30, 31, (*labels.shape, 3)) + 5 * (seed % 7)
    return images.clip(0, 255).astype(np.uint8), labels


def tiny_batch(count: int, seed: int, domain: str = "source") -> Batch:
    """A raw labelled batch as a reader gives it: uint8 images of 40x56 pixels, three of four tags, lamps mined, two
    frames before.
    """
    images, labels = tiny_pictures(count, seed)
    seeds = torch.tensor([sample_seed(seed, domain, position) for position in range(count)])
    batch = Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long(), seeds)
    batch.tags_BC = torch.ones(count, 4, dtype=torch.bool)
    batch.tags_BC[torch.arange(count), torch.arange(seed, seed + count) % 4] = False
    batch.mined_BHW = torch.from_numpy(np.where(labels == 3, 3, 255)).long()
    frame = batch
    for back in (1, 2):  # the scene moves by a pixel a frame
        moved = {name: getattr(batch, name).roll(-back, -1) for name in ("image_BCHW", "label_BHW")}
        frame.flow_B2HW = torch.tensor([-1.0, 0.0])[:, None, None].expand(count, 2, *labels.shape[1:]).clone()
        frame.valid_BHW = torch.ones(count, *labels.shape[1:], dtype=torch.bool)
        frame.valid_BHW[..., 0] = False
        frame.before = Batch(seed_B=seeds, **moved)
        frame = frame.before
    return batch


def tiny_samples(
    count: int, seed: int, *, labelled: bool = True, size: tuple[int, int] = (40, 56), clip_frames: int | None = None
) -> list[Sample]:
    """Samples for `write_shards`, PNG inside; as clips of ``clip_frames`` each if so."""
    return [
        Sample(key=f"{seed}-{i}", image=_png(image[..., ::-1]), height=size[0], width=size[1],
               label=_png(label) if labelled else None, tags=[i % 4, 3],
               clip=f"{seed}-{i // clip_frames}" if clip_frames else None, frame=i)
        for i, (image, label) in enumerate(zip(*tiny_pictures(count, seed, size), strict=True))
    ]  # fmt: skip


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, sorted."""
    return sorted(entry.name for entry in folder.iterdir())


def _png(array: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", array)
    assert done
    return encoded.tobytes()


RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
"""Every recipe of the repository."""
