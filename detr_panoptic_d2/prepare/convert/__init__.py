"""Convert other formats to COCO panoptic: a module per format, one writer."""
