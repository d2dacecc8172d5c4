"""Affine and B-spline registration with elastix (Klein et al., IEEE TMI 2010).

The result maps physical points of the fixed image to physical points of the moving one; resampling
the moving image onto the fixed grid uses it as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK

from medseg_kit.typing import UserError

METRICS = {
    "mutual_information": "AdvancedMattesMutualInformation",
    "correlation": "AdvancedNormalizedCorrelation",
}


@dataclass(frozen=True)
class Settings:
    """How two volumes are registered.

    Attributes:
        rigid: A rigid stage before the affine one.
        bspline: Control point spacing in mm of a B-spline stage after it; none if None.
        metric: "mutual_information" or "correlation".
        levels: Resolutions.
        iterations: A level.
        samples: Random points an iteration.
        seed: Of the sampling.
    """

    rigid: bool = False
    bspline: float | None = None
    metric: str = "mutual_information"
    levels: int = 4
    iterations: int = 200
    samples: int = 2048
    seed: int = 0


def register(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, settings: Settings
) -> SimpleITK.Transform:
    """Return A(fixed, moving): points of the fixed image to points of the moving one.

    Raises:
        UserError: For an unknown metric, or when elastix gives up (images that do not overlap).
    """
    if settings.metric not in METRICS:
        raise UserError(f"metric {settings.metric!r}: choose one of {sorted(METRICS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ITK's wrapping crashes when a warning is an error
        maps = _run(fixed, moving, settings)
    stages = [_to_simpleitk(content) for content in maps]
    if len(stages) == 1:
        return stages[0]
    # a composite applies its last transform first, elastix its first stage first
    return SimpleITK.CompositeTransform(stages[::-1])


def _run(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, settings: Settings
) -> list[Mapping[str, Any]]:
    """Return the parameter map of each stage."""
    import itk

    parameters = itk.ParameterObject.New()
    for stage in _stages(settings):
        parameters.AddParameterMap(_parameter_map(parameters, stage, settings))
    method = itk.ElastixRegistrationMethod.New(
        fixed_image=_to_itk(fixed),
        moving_image=_to_itk(moving),
        parameter_object=parameters,
        log_to_console=False,
        number_of_threads=1,
    )
    try:
        method.UpdateLargestPossibleRegion()
    except RuntimeError as error:
        raise UserError(f"elastix could not register the pair: {_last_line(error)}") from error
    result = method.GetTransformParameterObject()
    return [result.GetParameterMap(index) for index in range(result.GetNumberOfParameterMaps())]


def _stages(settings: Settings) -> list[str]:
    stages = ["rigid"] if settings.rigid else []
    stages.append("affine")
    return [*stages, "bspline"] if settings.bspline is not None else stages


def _parameter_map(parameters: Any, stage: str, settings: Settings) -> Any:
    content = parameters.GetDefaultParameterMap(stage, settings.levels)
    values = {
        "Metric": [METRICS[settings.metric]],
        "MaximumNumberOfIterations": [str(settings.iterations)],
        "NumberOfSpatialSamples": [str(settings.samples)],
        "AutomaticTransformInitialization": ["true"],
        "AutomaticTransformInitializationMethod": ["GeometricalCenter"],
        "RandomSeed": [str(settings.seed + 1)],
        "WriteResultImage": ["false"],
        "ResultImagePixelType": ["float"],
    }
    if stage == "bspline":
        values["FinalGridSpacingInPhysicalUnits"] = [str(settings.bspline)]
        values["AutomaticTransformInitialization"] = ["false"]
    for name, value in values.items():
        content[name] = value
    return content


def _to_itk(image: SimpleITK.Image) -> Any:
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


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
