"""Registration with SimpleITK's usual settings: the profile "as in the thesis", and a peer.

Worse than no registration on cine cardiac MR, because it optimises the whole chest; kept for
comparison with printed numbers.
"""

from __future__ import annotations

import SimpleITK

from medseg_kit.typing import UserError

FACTORS = [1, 2, 4]


def register(
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    *,
    bspline: float | None = None,
    seed: int = 0,
) -> tuple[SimpleITK.Transform, int]:
    """Return A(fixed, moving) from Mattes mutual information and gradient descent.

    Args:
        fixed: Float volume.
        moving: Float volume.
        bspline: Control point spacing in mm of a B-spline stage (LBFGS) after the affine one; none
            if None.
        seed: Of the random samples.

    Returns:
        The transform, and the iterations of the last level of each stage.

    Raises:
        UserError: If the optimiser gives up.
    """
    method = _method(seed)
    start = SimpleITK.CenteredTransformInitializer(
        fixed,
        moving,
        SimpleITK.AffineTransform(3),
        SimpleITK.CenteredTransformInitializerFilter.GEOMETRY,
    )
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=200, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    try:
        affine = method.Execute(fixed, moving)
        iterations = method.GetOptimizerIteration()
        if bspline is None:
            return affine, iterations
        method = _method(seed)
        method.SetMovingInitialTransform(affine)
        spline = _spline(fixed, moving, method, bspline)
    except RuntimeError as error:
        raise UserError(f"SimpleITK could not register the pair: {error}") from error
    both = SimpleITK.CompositeTransform([affine, spline])
    return both, iterations + method.GetOptimizerIteration()


def _method(seed: int) -> SimpleITK.ImageRegistrationMethod:
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, seed + 1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _spline(
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    method: SimpleITK.ImageRegistrationMethod,
    spacing: float,
) -> SimpleITK.Transform:
    extent = [n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    # the mesh of the first level; the last one is four times as fine
    mesh = [max(1, round(length / (FACTORS[-1] * spacing))) for length in extent]
    # LBFGSB fails on a mesh that is refined ("size of scales ... must equal ...", SimpleITK 2.5)
    method.SetOptimizerAsLBFGS2(solutionAccuracy=1e-5, numberOfIterations=100)
    method.SetInitialTransformAsBSpline(
        SimpleITK.BSplineTransformInitializer(fixed, mesh, order=3),
        inPlace=False,
        scaleFactors=FACTORS,
    )
    spline: SimpleITK.Transform = method.Execute(fixed, moving)
    return spline
