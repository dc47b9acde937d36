"""Backbones, transformer, mask head, losses and panoptic inference of DETR."""
