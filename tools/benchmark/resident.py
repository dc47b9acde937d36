"""The most memory that a process of its own needs for one image; prints MiB.

    python resident.py runtime FOLDER HEIGHT WIDTH KEPT THREADS
    python resident.py huggingface MODEL.onnx HEIGHT WIDTH KEPT THREADS
    python resident.py eager CONFIG HEIGHT WIDTH KEPT THREADS [KEY VALUE ...]

The first two import no torch. It is the kernel's figure (``VmHWM`` of Linux): weights, libraries
and the interpreter are in it.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def keep_exactly(model, kept: int):
    """Let an exported model keep its ``kept`` most probable queries; returns the model."""

    def select(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        scores, labels = probabilities[:, :-1].max(-1), probabilities[:, :-1].argmax(-1)
        best = np.sort(np.argsort(-scores, kind="stable")[:kept])
        return best, scores[best], labels[best]

    model.select = select
    return model


def run_once(kind: str, path: str, size: tuple[int, int], kept: int, threads: int, opts) -> None:
    """Load one side and segment one image with it."""
    small = (round(0.6 * size[0]), round(0.6 * size[1]))
    image = np.random.default_rng(0).integers(0, 256, (*small, 3), dtype=np.uint8)
    if kind == "runtime":
        sys.path.insert(0, path)
        from panoptic_runtime import PanopticModel

        model = keep_exactly(PanopticModel(path, threads), kept)
        model.description["size"] = list(size)
        model(image)
    elif kind == "huggingface":
        pixels = np.zeros((1, 3, *size), np.float32)
        onnx_session(path, threads).run(None, {"pixel_values": pixels})
    else:
        run_eager(path, image, size, kept, opts)


def onnx_session(path: str | Path, threads: int):
    """ONNX Runtime on a CPU, for Hugging Face's graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # With them a second run of a graph that computes all masks did not fit into 16 GB.
    options.enable_mem_pattern = options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_eager(config_file: str, image: np.ndarray, size, kept: int, opts: list[str]) -> None:
    """As the other sides, in PyTorch."""
    import torch
    from networks import build, keep_best

    model = build(config_file, opts, torch.device("cpu")).fold_for_inference()
    keep_best(model, kept)
    eager(model, size)(image)


def eager(model, size: tuple[int, int]) -> Callable[[np.ndarray], tuple]:
    """Our model from an H x W x 3 uint8 image of any size to ``panoptic_seg``, as a predictor."""
    import torch
    from detectron2.data.transforms import ResizeTransform

    @torch.no_grad()
    def run(image):
        resized = ResizeTransform(*image.shape[:2], *size).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        (result,) = model([{"image": tensor, "height": height, "width": width}])
        return result["panoptic_seg"]

    return run


def main() -> int:
    """Run one image and print the figure."""
    kind, path, height, width, kept, threads, *opts = sys.argv[1:]
    run_once(kind, path, (int(height), int(width)), int(kept), int(threads), opts)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    sys.stdout.write(f"{int(peak) / 1024}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
