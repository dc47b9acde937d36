"""A web page for one image: show its segments and change the thresholds.

Only :mod:`.app` needs Gradio (the extra ``web``).
"""
