"""Pictures of panoptic segmentation, on Detectron2's ``Visualizer``."""
