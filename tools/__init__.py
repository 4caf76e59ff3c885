"""What makes and documents the package and is no part of it: training of the embedded model, pages that are written."""
