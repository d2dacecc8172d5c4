"""Resampling to a voxel spacing that leaves string items such as ``image_path`` alone."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd as MonaiSpacingd


class Spacingd(MonaiSpacingd):
    """Resamples the volumes of a dictionary to ``pixdim`` (mm), as MONAI's transform of this name.

    Works around a bug of MONAI 1.6: after resampling a NIfTI volume stored under ``key``,
    ``monai.transforms.Spacingd`` copies its metadata into *every* item whose name starts with
    ``<key>_``, also where that item is a string: ``AttributeError: 'str' object has no attribute
    'update'``. MONAI Label always carries the string ``image_path`` beside ``image``, and a
    datalist may hold ``label_source`` or the like. Items that cannot be updated are set aside
    during the call and put back afterwards. Remove this class when the lowest supported MONAI
    release only updates metadata dictionaries.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        """Resamples the items named by ``keys``.

        Args:
            data: Dictionary with channel-first volumes ``(C, H, W[, D])`` under ``keys``; other
                items are returned as they are.
            lazy: Overrides the ``lazy`` flag for this call.

        Returns:
            A new dictionary with the same items in the same order, the volumes resampled.
        """
        aside = {name for name, item in data.items() if self._breaks_upstream(name, item)}
        kept = {name: item for name, item in data.items() if name not in aside}
        resampled = super().__call__(kept, lazy=lazy)
        return {name: data[name] if name in aside else resampled[name] for name in data}

    def _breaks_upstream(self, name: Hashable, item: object) -> bool:
        """True for an item that MONAI would take for the metadata of a volume but is not."""
        return (
            isinstance(name, str)
            and name not in self.keys
            and name.startswith(tuple(f"{key}_" for key in self.keys))
            and not hasattr(item, "update")
        )
