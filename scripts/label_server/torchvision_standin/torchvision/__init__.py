"""Stand-in for torchvision next to a CPU build of torch, which has no matching torchvision.

MONAI Label 0.8.5 imports `torchvision.utils.make_grid` and `save_image` and nothing else of it.
"""

__version__ = "0.0.0+standin"
