"""Check datasets in COCO panoptic format before training."""
