"""Check data sets in COCO panoptic format before training."""
