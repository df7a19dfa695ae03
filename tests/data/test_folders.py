"""Folders: classes from their names, pixels as Keras would have them, and every odd file named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from data.base import DataError, Dataset
from data.folders import ImageFolder, TextFolder
from pipeline.config.dataset_checks import load
from pipeline.errors import DataSetError

COLOURS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


def picture(colour: tuple[int, int, int], height: int = 8, width: int = 6) -> Any:
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = colour
    return tf.constant(image)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of ten PNGs in each of two classes."""
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            content = tf.io.encode_png(picture(colour)).numpy()
            (tmp_path / "images" / name / f"{number}.png").write_bytes(content)
    (tmp_path / "images" / ".DS_Store").write_bytes(b"")
    (tmp_path / "images" / "blue" / ".hidden").write_bytes(b"")
    return tmp_path / "images"


class TestImageFolder:
    def load(self, path: Path, **options: Any) -> Dataset:
        return load(ImageFolder(path=path, **{"size": [8, 6], "batch_size": 2, **options}))

    def test_classes_are_the_sub_folders(self, images: Path) -> None:
        data = self.load(images, test_fraction=0.2)
        assert data.metadata == {"classes": ["blue", "red"]}
        assert data.train["image"].shape == (16, 8, 6, 3)
        assert data.train["image"].dtype == np.uint8
        assert data.train["labels"].dtype == np.int64
        assert np.bincount(data.test["labels"]).tolist() == [2, 2], "stratified"
        for image, label in zip(data.train["image"], data.train["labels"], strict=True):
            np.testing.assert_array_equal(image, picture([*COLOURS.values()][label]))
        assert data.fingerprint() == self.load(images, test_fraction=0.2).fingerprint()
        tail = self.load(images, test_fraction=0.2, split="tail")
        assert tail.test["labels"].tolist() == [1, 1, 1, 1]

    def test_images_are_of_one_size(self, images: Path) -> None:
        """The pixels are those of Keras' own function for such folders."""
        larger = np.random.default_rng(0).integers(0, 256, (13, 9, 3), np.uint8)
        (images / "red" / "3.png").write_bytes(tf.io.encode_png(larger).numpy())
        ours = self.load(images, size=[5, 4], split="tail", test_path=images)
        theirs = keras.utils.image_dataset_from_directory(
            images, image_size=(5, 4), shuffle=False, batch_size=None, verbose=False
        )
        for ours_one, (image, label) in zip(
            zip(ours.test["image"], ours.test["labels"], strict=True), theirs, strict=True
        ):
            assert label == ours_one[1]
            np.testing.assert_allclose(ours_one[0], image, atol=0.5001)

    def test_photographs_are_decoded_with_accuracy(self, images: Path) -> None:
        content = tf.io.encode_jpeg(picture((100, 150, 200)), quality=100, chroma_downsampling=False).numpy()
        (images / "red" / "x.JPG").write_bytes(content)
        image = self.load(images, test_path=images).test["image"][-1]
        np.testing.assert_allclose(image, picture((100, 150, 200)), atol=3)
        np.testing.assert_array_equal(image, tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"))

    def test_images_may_be_grey(self, images: Path) -> None:
        data = self.load(images, channels=1)
        assert data.train["image"].shape == (18, 8, 6, 1)
        assert 0 < data.train["image"].max() < 200

    def test_a_test_folder_has_the_same_classes(self, images: Path, tmp_path: Path) -> None:
        test = tmp_path / "test"
        (test / "red").mkdir(parents=True)
        (test / "red" / "a.png").write_bytes((images / "red" / "0.png").read_bytes())
        data = self.load(images, test_path=test)
        assert (data.num_train, data.test["labels"].tolist()) == (20, [1])
        (test / "green").mkdir()
        with pytest.raises(DataSetError, match=r"classes of data.path, .*Received also: \['green'\]"):
            self.load(images, test_path=test)

    def test_what_is_no_image_is_named(self, images: Path) -> None:
        content = (images / "red" / "0.png").read_bytes()
        (images / "red" / "0.png").write_bytes(content[: len(content) // 2])
        (images / "red" / "1.jpg").write_bytes(b"\xff\xd8 no image")
        (images / "blue" / "x.png").write_bytes(b"")
        with pytest.raises(DataSetError) as caught:
            self.load(images)
        lines = str(caught.value).splitlines()
        assert [
            Path(line.partition(" must be a PNG or JPEG image. Decoding failed: ")[0]).name for line in lines
        ] == [
            "x.png",
            "0.png",
            "1.jpg",
        ]
        assert lines[0].endswith("Decoding failed: Input is empty.")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda path: (path / "red" / "a.gif").touch(),
                r"a.gif must be one of .png, .jpg, .jpeg. Convert",
            ),
            (lambda path: (path / "red" / "b.png").mkdir(), "b.png must be one of"),
            (lambda path: (path / "empty").mkdir(), "empty must have a file of its class"),
            (lambda path: (path / "red").rename(path / ".red"), "at least two classes.*Received: blue"),
            (lambda path: path.rename(path.parent / "b"), "must name a folder of classes. .*No such file"),
        ],
    )
    def test_what_is_no_folder_of_classes_is_refused(self, images: Path, change: Any, message: str) -> None:
        change(images)
        with pytest.raises(DataSetError, match=message):
            self.load(images)

    def test_that_would_not_fit_into_memory_is_refused(self, images: Path) -> None:
        with pytest.raises(DataSetError, match="The images of .* must fit into memory"):
            self.load(images, size=[10**7, 10**7])

    @pytest.mark.parametrize("size", [[8], [8, 0], [8, 8, 3]])
    def test_a_size_is_a_height_and_a_width(self, size: list[int]) -> None:
        with pytest.raises(ValueError, match="data.size must be a height and a width"):
            ImageFolder(path=Path("images"), size=size)

    def test_tensorflow_is_imported_by_the_pipeline(self, images: Path) -> None:
        code = (
            "import sys; from data.folders import *; from pipeline.config.dataset_checks import load; "
            f"source = ImageFolder(path=Path({str(images)!r}), size=[4, 4], batch_size=1); "
            "assert 'tensorflow' not in sys.modules; load(source); "
            "import os; sys.exit(os.environ['TF_ENABLE_ONEDNN_OPTS'] != '1')"
        )
        finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (finished.returncode, finished.stderr) == (0, "")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name, words in (("ham", "bread butter"), ("spam", "win größe")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "texts" / name / f"{number}.txt").write_text(f"{words}\n{number}")
    return tmp_path / "texts"


class TestTextFolder:
    def load(self, path: Path, **options: Any) -> Dataset:
        return TextFolder(path=path, **{"batch_size": 1, "test_fraction": 0.2, **options}).load()

    def test_classes_are_the_sub_folders(self, texts: Path) -> None:
        data = self.load(texts, split="tail")
        assert data.metadata == {"classes": ["ham", "spam"]}
        assert data.train["text"].shape == (8, 1)
        assert data.train["text"][7].tolist() == ["win größe\n2".encode()]
        assert data.train["labels"].tolist() == [0] * 5 + [1] * 3
        assert sorted(self.load(texts).test["labels"]) == [0, 1]

    def test_lines_have_labels(self, tmp_path: Path, texts: Path) -> None:
        path = tmp_path / "lines.tsv"
        path.write_bytes("\ufeffspam\twin\ta lot\r\n\nham\tbread\x0cbutter\nham\t\n".encode())
        data = self.load(path, test_path=texts)
        assert data.metadata == {"classes": ["ham", "spam"]}
        assert data.train["text"].tolist() == [[b"win\ta lot"], [b"bread\x0cbutter"], [b""]]
        assert data.train["labels"].tolist() == [1, 0, 0]
        assert data.num_test == 10

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"spam win\n\nham\tbread\n\tno class", "line 1: a line must have a class, a tab.*\n.*line 4: "),
            (b"spam\twin\nspam\tlot\n", "at least two classes.*Received: spam"),
            (b"", "Received: none"),
            (b"a\tb\nb\tcaf\xe9\n", "must be UTF-8 text. Line 2 is not: invalid"),
        ],
    )
    def test_what_are_no_labelled_lines_is_refused(
        self, tmp_path: Path, content: bytes, message: str
    ) -> None:
        path = tmp_path / "lines.tsv"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            self.load(path)

    def test_a_file_of_another_kind_is_named(self, texts: Path) -> None:
        for number in range(6):
            (texts / "ham" / f"{number}.doc").touch()
        with pytest.raises(DataError) as caught:
            self.load(texts)
        lines = str(caught.value).splitlines()
        assert lines[0] == f"{texts / 'ham' / '0.doc'} must be one of .txt. Convert it, or remove it."
        assert lines[5:] == ["There are more."]
