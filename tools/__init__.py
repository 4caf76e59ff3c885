"""Development tools outside the package: training of the embedded model, and generators of documentation pages."""
