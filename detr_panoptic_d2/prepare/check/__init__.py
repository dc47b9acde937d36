"""Find what is wrong with a data set in COCO panoptic format before training does."""
