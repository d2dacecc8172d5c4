"""Registration with SimpleITK's usual settings: the profile "as in the thesis", and a peer.

Worse than no registration on cine cardiac MR, because it optimises the whole chest; kept for
comparison with printed numbers.
"""

from __future__ import annotations

import SimpleITK

from medseg_kit.typing import UserError

SPLINE_SPACING_MM = 24.0


def register(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, *, bspline: bool = False, seed: int = 0
) -> SimpleITK.Transform:
    """Return A(fixed, moving) from Mattes mutual information and gradient descent.

    Args:
        fixed: Float volume.
        moving: Float volume.
        bspline: A B-spline stage (24 mm, LBFGSB) after the affine one.
        seed: Of the random samples.

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
        return _spline(fixed, moving, affine, seed) if bspline else affine
    except RuntimeError as error:
        raise UserError(f"SimpleITK could not register the pair: {error}") from error


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
    fixed: SimpleITK.Image, moving: SimpleITK.Image, affine: SimpleITK.Transform, seed: int
) -> SimpleITK.Transform:
    extent = [n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    mesh = [max(1, round(length / (4 * SPLINE_SPACING_MM))) for length in extent]
    method = _method(seed)
    method.SetMovingInitialTransform(affine)
    method.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=100)
    method.SetInitialTransformAsBSpline(
        SimpleITK.BSplineTransformInitializer(fixed, mesh, order=3),
        inPlace=False,
        scaleFactors=[1, 2, 4],
    )
    spline = method.Execute(fixed, moving)
    return SimpleITK.CompositeTransform([affine, spline])
