from PIL import Image


def test_data_training_table_picture_and_report(command, tmp_path, monkeypatch):
    """The whole demo on the smallest split and the smallest model."""
    monkeypatch.chdir(tmp_path)
    split = "('shapes_panoptic_tune',)"
    words = ["demo", "--output", "demo", "--config-file", "shapes/tiny.yaml", "MODEL.DEVICE", "cpu"]
    status, out, err = command(*words, "DATASETS.TRAIN", split, "DATASETS.TEST", split)
    assert status == 0, err
    table = [line.split() for line in out.splitlines()[-9:]]
    assert ["held-out", "PQ", "SQ", "RQ"] in table
    assert [row[0] for row in table if len(row) == 4][2:] == ["all", "things", "stuff"]
    with Image.open("demo/ground_truth_and_prediction.png") as picture:
        # Four rows of six pictures, twice their size to be legible.
        assert picture.width > 6 * 256 and picture.height > 4 * 256
    assert out.rstrip().endswith("report.html")
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for text in (
        *("Finished: 4 iterations.", "Results on shapes_panoptic_tune", "triangle", "model_best"),
        *("Per training step", "Total loss", "Learning rate"),
        *("MAX_ITER: 4", 'alt="Ground truth" src="data:image/jpeg'),
    ):
        assert text in page, text
