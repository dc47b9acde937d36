"""Pictures of panoptic segmentation."""
