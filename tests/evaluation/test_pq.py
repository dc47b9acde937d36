"""The counting equals panopticapi's, which reads the same maps from PNGs."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.evaluation.pq import count_matches

CATEGORIES = [7, 3, 200]
# More than 2^16, to see that ids are whole: 3 and 65539 differ in the third byte alone.
IDS = [0, 1, 3, 65539, 2**24 - 1]


def panopticapi_counts(
    folder, annotated_ids, annotated, predicted_ids, predicted, categories=CATEGORIES
):
    pair = []
    for name, ids, segments in (
        ("annotated.png", annotated_ids, annotated),
        ("predicted.png", predicted_ids, predicted),
    ):
        Image.fromarray(id2rgb(ids)).save(folder / name, compress_level=0)
        # It writes into the segments.
        info = [dict(s) for s in segments]
        pair.append({"file_name": name, "segments_info": info, "image_id": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, [tuple(pair)], str(folder), str(folder), categories)
    return sums(stat)


def sums(stat):
    counts = {c: (float(s.iou), s.tp, s.fp, s.fn) for c, s in stat.pq_per_cat.items()}
    return {c: x for c, x in counts.items() if any(x)}


def our_counts(annotated_ids, annotated, predicted_ids, predicted):
    predicted_ids = predicted_ids.astype(np.int32)
    return sums(count_matches(annotated_ids.astype(np.uint32), annotated, predicted_ids, predicted))


@st.composite
def images(draw):
    """Maps of few ids, so that overlaps of exactly one half are common."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    size = height * width
    ids = [
        np.array(draw(st.lists(st.sampled_from(IDS), min_size=size, max_size=size))) for _ in "ab"
    ]
    classes = st.sampled_from(CATEGORIES)
    annotated = []
    # Ids without an entry, entries without pixels, entries with one id, wrong areas and crowd.
    for i in draw(st.lists(st.sampled_from(IDS))):
        area = int((ids[0] == i).sum()) + draw(st.sampled_from([0, 0, 0, 2]))
        crowd = draw(st.sampled_from([0, 0, 1]))
        annotated.append({"id": i, "category_id": draw(classes), "iscrowd": crowd, "area": area})
    predicted = [{"id": int(i), "category_id": draw(classes)} for i in np.unique(ids[1])]
    if draw(st.booleans()):
        predicted = [s for s in predicted if s["id"]]
    if predicted:
        predicted += [
            {**s, "category_id": draw(classes)}
            for s in draw(st.lists(st.sampled_from(predicted), max_size=2))
        ]
    shape = height, width
    return ids[0].reshape(shape), annotated, ids[1].reshape(shape), predicted


@settings(max_examples=200, deadline=None)
@given(images())
def test_counts_of_random_maps(tmp_path_factory, image):
    expected = panopticapi_counts(tmp_path_factory.getbasetemp(), *image)
    assert our_counts(*image) == expected


def test_maps_and_entries_of_a_prediction_must_agree():
    ids, entry = np.array([[1, 5]]), {"id": 1, "category_id": 7}
    with pytest.raises(ValueError, match=r"\[5\] have no pixels, or no entry"):
        our_counts(ids, [], ids, [entry])
    with pytest.raises(ValueError, match=r"\[9\] have no pixels, or no entry"):
        our_counts(ids, [], ids, [entry, {**entry, "id": 5}, {**entry, "id": 9}])


def test_counts_of_real_images(sample_data, tmp_path):
    """Two images, with the annotation as prediction: moved, with other classes and with void."""
    root = sample_data("coco_panoptic_sample")
    content = json.loads((root / "panoptic_val2017.json").read_text())
    categories = [c["id"] for c in content["categories"]]
    rng, num_matched = np.random.default_rng(0), 0
    for annotation in content["annotations"]:
        annotated = annotation["segments_info"]
        ids = read_panoptic_png(root / "panoptic_val2017" / annotation["file_name"])
        for shift in (0, 5, 30):
            predicted_ids = np.roll(ids, shift, axis=1)
            predicted_ids[rng.random(ids.shape) < 0.01 * shift] = 0
            predicted = [
                {"id": s["id"], "category_id": s["category_id"]}
                if rng.random() < 0.9
                else {"id": s["id"], "category_id": int(rng.choice(categories))}
                for s in annotated
                if (predicted_ids == s["id"]).any()
            ]
            image = ids, annotated, predicted_ids, predicted
            stat = our_counts(*image)
            assert stat == panopticapi_counts(tmp_path, *image, categories)
            num_matched += sum(tp for _, tp, _, _ in stat.values())
    assert num_matched > 20
