"""The batch of a training compared with the official recipe's."""

import logging
import math

from detectron2.config import CfgNode

from ..errors import UserError

logger = logging.getLogger(__name__)

# What configs/Base-DETR-Panoptic.yaml says: images per batch of all processes, and the rate.
RECIPE_BATCH = 64
RECIPE_LR = 1e-4
# Official DETR's own default is a quarter of the paper's batch (8 GPUs with 2 images) at the same
# learning rate, so only smaller batches call for another one.
_LEAST_SHARE = 1 / 4
# A rate scaled linearly to 3e-4 did not train at all: facebookresearch/detr issue 48.
_HIGHEST_SCALED_LR = 2 * RECIPE_LR


def check_reference_world_size(cfg: CfgNode) -> None:
    """Make sure that ``SOLVER.REFERENCE_WORLD_SIZE`` fits the batch that it refers to.

    Raises:
        UserError: it does not divide ``SOLVER.IMS_PER_BATCH``.
    """
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference < 0 or (reference and batch % reference):
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}: it is the number of processes that "
            f"SOLVER.IMS_PER_BATCH, {batch}, was meant for, and must divide it. Set it to 0 to "
            "train with the numbers of the config as they are."
        )


def warn_about_batch(cfg: CfgNode) -> None:
    """Log a warning if batch and learning rate do not fit together.

    Once when the learning rate is the recipe's and the batch less than a quarter of the recipe's;
    and once when ``SOLVER.REFERENCE_WORLD_SIZE`` has scaled the rate beyond what trains. A config
    with a learning rate of its own is taken to know its batch.

    Args:
        cfg: after scaling by ``SOLVER.REFERENCE_WORLD_SIZE``.
    """
    solver = cfg.SOLVER
    batch, rate = solver.IMS_PER_BATCH, solver.BASE_LR
    if math.isclose(rate, RECIPE_LR, rel_tol=1e-6) and batch < _LEAST_SHARE * RECIPE_BATCH:
        factor = RECIPE_BATCH / batch
        steps = tuple(round(step * factor) for step in solver.STEPS)
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d, but SOLVER.BASE_LR %g is the recipe's for %d images. "
            "Consider SOLVER.BASE_LR from %.3g (linear in the batch) to %.3g (its square root). "
            "If SOLVER.MAX_ITER %d and STEPS %s are still those for %d images, the same epochs "
            "are SOLVER.MAX_ITER %d and STEPS %s here.",
            batch,
            rate,
            RECIPE_BATCH,
            rate / factor,
            rate / math.sqrt(factor),
            solver.MAX_ITER,
            tuple(solver.STEPS),
            RECIPE_BATCH,
            round(solver.MAX_ITER * factor),
            steps,
        )
    if solver.REFERENCE_WORLD_SIZE and rate > _HIGHEST_SCALED_LR and solver.OPTIMIZER == "ADAMW":
        logger.warning(
            "SOLVER.REFERENCE_WORLD_SIZE has scaled SOLVER.BASE_LR to %g for SOLVER.IMS_PER_BATCH "
            "%d. Official DETR reports that this much does not train with AdamW; it keeps %g with "
            "64 GPUs too. Set SOLVER.REFERENCE_WORLD_SIZE to 0, and SOLVER.IMS_PER_BATCH, "
            "SOLVER.BASE_LR, SOLVER.MAX_ITER and SOLVER.STEPS yourself.",
            rate,
            batch,
            RECIPE_LR,
        )
