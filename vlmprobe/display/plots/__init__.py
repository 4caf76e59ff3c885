"""Plots: each function draws arrays, or what fits a protocol of :mod:`vlmprobe.display.shown`, and returns the axes.

:mod:`~vlmprobe.display.plots.style` is their common style. matplotlib is imported on first use. Results, scores,
samples, rankings and the classes of the analysis call these in their ``plot()``.
"""
