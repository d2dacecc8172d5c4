"""Affine and B-spline registration with elastix (Klein et al., IEEE TMI 2010).

The result maps physical points of the fixed image to physical points of the moving one; resampling
the moving image onto the fixed grid uses it as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK

from medseg_kit.typing import UserError

_LOG = "elastix.log"
THICK = 2.0  # slices this many times as far apart as pixels keep their number in the pyramid
METRICS = {
    "mutual_information": "AdvancedMattesMutualInformation",
    "correlation": "AdvancedNormalizedCorrelation",
}


@dataclass(frozen=True)
class Stages:
    """What elastix does.

    Attributes:
        rigid: A rigid stage before the affine one.
        bspline: Control point spacing in mm of a B-spline stage after it; none if None.
        metric: "correlation" or "mutual_information".
        levels: Resolutions.
        iterations: A level.
        samples: Random points an iteration.
        seed: Of the sampling.
    """

    rigid: bool = False
    bspline: float | None = None
    metric: str = "correlation"
    levels: int = 4
    iterations: int = 200
    samples: int = 2048
    seed: int = 0


def register(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, stages: Stages
) -> tuple[SimpleITK.Transform, int]:
    """Return A(fixed, moving), points of the fixed image to points of the moving one.

    elastix's parameter maps become SimpleITK transforms of the same parameters: one file format and
    one resampler for every method, exact (the tests compare points with transformix), and point
    mapping without ITK's filters.

    Args:
        fixed: Float volume.
        moving: Float volume.
        stages: What to do.

    Returns:
        The transform, and how many iterations it took.

    Raises:
        UserError: For an unknown metric, or when elastix gives up (images that do not overlap).
    """
    if stages.metric not in METRICS:
        raise UserError(f"metric {stages.metric!r}: choose one of {sorted(METRICS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ITK's wrapping crashes when a warning is an error
        maps = run(fixed, moving, stages)
    parts = [_to_simpleitk(content) for content in maps]
    iterations = len(parts) * stages.levels * stages.iterations  # its optimiser uses them all
    # a composite applies its last transform first, elastix its first stage first
    whole = parts[0] if len(parts) == 1 else SimpleITK.CompositeTransform(parts[::-1])
    return whole, iterations


def run(fixed: SimpleITK.Image, moving: SimpleITK.Image, stages: Stages) -> list[Mapping[str, Any]]:
    """Return the parameter map of each stage."""
    import itk

    parameters = itk.ParameterObject.New()
    for name in _names(stages):
        content = _parameter_map(parameters, name, stages)
        content["ImagePyramidSchedule"] = _pyramid(fixed.GetSpacing(), stages.levels)
        parameters.AddParameterMap(content)
    with TemporaryDirectory() as folder:
        method = itk.ElastixRegistrationMethod.New(
            fixed_image=to_itk(fixed),
            moving_image=to_itk(moving),
            parameter_object=parameters,
            output_directory=folder,
            log_file_name=_LOG,
            log_to_file=True,  # its exception only points there
            log_to_console=False,
            number_of_threads=1,
        )
        try:
            method.UpdateLargestPossibleRegion()
        except RuntimeError as error:
            reason = _reason(Path(folder) / _LOG) or "no reason given"
            raise UserError(f"elastix could not register the pair: {reason}") from error
        result = method.GetTransformParameterObject()
        return [result.GetParameterMap(index) for index in range(result.GetNumberOfParameterMaps())]


def _names(stages: Stages) -> list[str]:
    names = ["rigid", "affine"] if stages.rigid else ["affine"]
    return [*names, "bspline"] if stages.bspline is not None else names


def _parameter_map(parameters: Any, name: str, stages: Stages) -> Any:
    content = parameters.GetDefaultParameterMap(name, stages.levels)
    values = {
        "Metric": [METRICS[stages.metric]],
        "MaximumNumberOfIterations": [str(stages.iterations)],
        "NumberOfSpatialSamples": [str(stages.samples)],
        "AutomaticTransformInitialization": ["true"],
        "AutomaticTransformInitializationMethod": ["GeometricalCenter"],
        "RandomSeed": [str(stages.seed + 1)],
        "WriteResultImage": ["false"],
        "ResultImagePixelType": ["float"],
    }
    if name == "bspline":
        values["FinalGridSpacingInPhysicalUnits"] = [str(stages.bspline)]
        values["AutomaticTransformInitialization"] = ["false"]
    for key, value in values.items():
        content[key] = value
    return content


def _pyramid(spacing: Sequence[float], levels: int) -> list[str]:
    """Return by how much each axis shrinks at each level; thick slices do not."""
    shrinks = [size < THICK * min(spacing) for size in spacing]
    factors = [2**level for level in reversed(range(levels))]
    return [str(factor if shrink else 1) for factor in factors for shrink in shrinks]


def to_itk(image: SimpleITK.Image) -> Any:
    """Return an image with its geometry as ITK's own type."""
    import itk

    result = itk.image_from_array(SimpleITK.GetArrayFromImage(image))
    result.SetSpacing(list(image.GetSpacing()))
    result.SetOrigin(list(image.GetOrigin()))
    result.SetDirection(itk.matrix_from_array(np.array(image.GetDirection()).reshape(3, 3)))
    return result


def _to_simpleitk(content: Mapping[str, Any]) -> SimpleITK.Transform:
    kind = content["Transform"][0]
    transform: SimpleITK.Transform
    values = [float(value) for value in content["TransformParameters"]]
    if kind == "BSplineTransform":
        size, origin, spacing, direction = (
            [float(value) for value in content[f"Grid{name}"]]
            for name in ("Size", "Origin", "Spacing", "Direction")
        )
        transform = SimpleITK.BSplineTransform(3, int(content["BSplineTransformSplineOrder"][0]))
        # elastix writes the direction column by column
        rows = np.array(direction).reshape(3, 3).T.ravel().tolist()
        transform.SetFixedParameters([*size, *origin, *spacing, *rows])
        transform.SetParameters(values)
        return transform
    kinds = {
        "AffineTransform": SimpleITK.AffineTransform(3),
        "EulerTransform": SimpleITK.Euler3DTransform(),
    }
    transform = kinds[kind]
    centre = [float(value) for value in content["CenterOfRotationPoint"]]
    transform.SetFixedParameters(centre + [0.0] * (len(transform.GetFixedParameters()) - 3))
    transform.SetParameters(values)
    return transform


def _reason(log: Path) -> str:
    """Return what elastix's log says about its failure, without addresses in memory."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    found = [line for line in lines if line.startswith("Description:")]
    text = found[-1] if found else ""
    return text.removeprefix("Description:").replace("ITK ERROR:", "").partition("):")[2].strip()
