"""Plots: each function draws arrays, or what fits a protocol of :mod:`vlmprobe.display.shown`, and returns the axes.

:mod:`~vlmprobe.display.plots.style` is the look of all of them; matplotlib is imported there alone, when first used.
Whoever has a result, scores, samples, a ranking or a figure of the analysis calls its ``plot()``, which calls these.
"""
