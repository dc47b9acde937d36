"""Other formats -> COCO panoptic: one module per format, one writer."""
