"""A page in the browser: drop an image, look at its segments, change the thresholds.

:mod:`.app` needs Gradio (the extra ``web``); :mod:`.analysis` does not.
"""
