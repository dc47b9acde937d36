#!/usr/bin/env python
"""Convert ShuffleNetV2 weights of Megvii's layout to torchvision's names and order of channels.

    tools/experiments/shufflenet_weights.py backbone.pth shufflenet.pth

The input is ``model/backbone/backbone.pth`` of github.com/dog-qiuqiu/Yolo-FastestV2, a ShuffleNetV2
x0.5 that was trained on ImageNet and has no last convolution. ``MODEL.WEIGHTS`` takes the output.

Megvii's blocks take every second channel of their input, torchvision's blocks the second half of
it after a shuffle. Both compute the same if the channels are permuted. A channel that a block
creates is used by one later block, so channels that are created and used by the same blocks
correspond.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable

import torch

# Blocks and output channels of each stage.
_STAGES = {"stage2": (4, 48), "stage3": (8, 96), "stage4": (4, 192)}
# A channel: the block and the branch that create it, and its number there.
Channel = tuple[str, int]


def _follow(
    num_blocks: int, channels: int, order: Callable, used: Callable
) -> tuple[list[list[Channel]], dict[Channel, int]]:
    """Return the channels that each block uses, and the block that uses each channel.

    The last item of the list holds all outputs of the stage.
    """
    half = range(channels // 2)
    state = [("proj0", i) for i in half] + [("main0", i) for i in half]
    inputs: list[list[Channel]] = [[]]
    for block in range(1, num_blocks):
        shuffled = order(state)
        inputs.append(used(shuffled))
        kept = [channel for channel in shuffled if channel not in set(inputs[-1])]
        state = kept + [(f"main{block}", i) for i in half]
    inputs.append(order(state))
    return inputs, {channel: i for i, block in enumerate(inputs) for channel in block}


def _interleave(state: list[Channel]) -> list[Channel]:
    half = len(state) // 2
    return [channel for pair in zip(state[:half], state[half:], strict=True) for channel in pair]


def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights with torchvision's names and order of channels."""
    result = {}
    last: list[int] | None = None

    def copy(source: str, target: str, outputs=None, inputs=None) -> None:
        """Copy a convolution and the batch norm after it."""
        for shift in (0, 1):
            (name, i), (other, j) = (x.rsplit(".", 1) for x in (source, target))
            prefix, renamed = f"{name}.{int(i) + shift}.", f"{other}.{int(j) + shift}."
            for key, value in weights.items():
                if key.startswith(prefix):
                    if value.dim() and outputs is not None:
                        value = value[outputs]
                    if value.dim() == 4 and inputs is not None:
                        value = value[:, inputs]
                    result[renamed + key.removeprefix(prefix)] = value

    copy("first_conv.0", "conv1.0")
    for stage, (num_blocks, channels) in _STAGES.items():
        megvii, megvii_use = _follow(num_blocks, channels, list, lambda x: x[1::2])
        ours, our_use = _follow(num_blocks, channels, _interleave, lambda x: x[len(x) // 2 :])
        same: dict[tuple, list[Channel]] = defaultdict(list)
        for channel in sorted(megvii_use):
            same[channel[0], megvii_use[channel]].append(channel)
        match = {c: same[c[0], our_use[c]].pop(0) for c in sorted(our_use)}

        def outputs(branch: str, match=match, channels=channels) -> list[int]:
            return [match[branch, i][1] for i in range(channels // 2)]

        for block in range(num_blocks):
            source, target = f"{stage}.{block}.branch_main", f"{stage}.{block}.branch2"
            inputs = [megvii[block].index(match[c]) for c in ours[block]] if block else last
            copy(f"{source}.0", f"{target}.0", inputs=inputs)
            copy(f"{source}.3", f"{target}.3")
            copy(f"{source}.5", f"{target}.5", outputs(f"main{block}"))
        source, target = f"{stage}.0.branch_proj", f"{stage}.0.branch1"
        copy(f"{source}.0", f"{target}.0", outputs=last)
        copy(f"{source}.2", f"{target}.2", outputs("proj0"), last)
        last = [megvii[-1].index(match[c]) for c in ours[-1]]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input")
    parser.add_argument("output")
    args = parser.parse_args()
    weights = torch.load(args.input, map_location="cpu", weights_only=True)
    torch.save(convert(weights), args.output)


if __name__ == "__main__":
    main()
