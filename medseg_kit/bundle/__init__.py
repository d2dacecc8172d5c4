"""Finding, composing and verifying MONAI bundles."""
