"""Medical image segmentation where labels are scarce and images may not leave the hospital."""

__version__ = "0.1.0"
