"""Folders of images and of texts, in which each sub-folder is a class; and files of labelled lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from data.base import Arrays, DataError, Dataset, check_memory, refuse
from data.splits import Split, divide, held_out


@dataclass(frozen=True)
class _Examples:
    """What is read of a folder or a file.

    Attributes:
        arrays: The inputs `[N, ...]` by name, and `labels` `[N]` int64.
        classes: The name of each label.
    """

    arrays: Arrays
    classes: Sequence[str]


class ImageFolder:
    """Images `image` `[N, H, W, C]` uint8 of sub-folders, one for each class, and `labels` `[N]` int64.

    `metadata["classes"]` is the sorted list of the names of the sub-folders, which the labels number. Hidden
    files are passed over; any other file must be a PNG or JPEG image. An image of another size is stretched
    or shrunk to `size` as `tf.image.resize` does, bilinear; its own proportions are not kept.

    TensorFlow decodes the images, so it is imported before the data is read and not after.

    Args:
        path: A folder of the training images; its sub-folders are the classes.
        size: Height and width of an image, in pixels.
        channels: 3 for colours, 1 for grey.
        test_path: A folder of the test images, with the same classes. `None` takes images of `path`.
        batch_size: Rows in a batch.
        split: Which images are the test split, if there is no `test_path`: the `tail` of the sorted names,
            which has the last class alone, a `random` choice, or a choice `stratified` by the class.
        test_fraction: Fraction of the images that is the test split.
        seed: Seeds the choice of the test split.

    Raises:
        ValueError: `size` is not a height and a width.
    """

    needs_tensorflow = True

    def __init__(
        self,
        *,
        path: Path,
        size: list[int],
        channels: Literal[1, 3] = 3,
        test_path: Path | None = None,
        batch_size: Annotated[int, ">= 1"] = 32,
        split: Split = "stratified",
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
        seed: Annotated[int, ">= 0"] = 0,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"data.size must be a height and a width, at least 1 pixel. Received: {size}.")
        self.path = path
        self.size = size
        self.channels = channels
        self.test_path = test_path
        self.batch_size = batch_size
        self.split: Split = split
        self.test_fraction = test_fraction
        self.seed = seed

    def load(self) -> Dataset:
        """Decode the images and bring them to one size.

        Raises:
            DataError: A folder has no classes, or files are no images; the message names up to 5 of them.
        """
        return _load(self, self._read)

    def _read(self, folder: Path, classes: Sequence[str] | None) -> _Examples:
        files, labels, classes = _files_by_class(folder, (".png", ".jpg", ".jpeg"), classes)
        shape = (len(files), *self.size, self.channels)
        check_memory(int(np.prod(shape, dtype=float)), f"The images of {folder}")
        images = np.empty(shape, np.uint8)
        problems: list[str] = []
        with ThreadPoolExecutor() as pool:
            for number, decoded in enumerate(pool.map(self._decoded, files)):
                if isinstance(decoded, str):
                    problems.append(
                        f"{files[number]} must be a PNG or JPEG image. Decoding failed: {decoded}."
                    )
                else:
                    images[number] = decoded
        refuse(problems)
        return _Examples({"image": images, "labels": labels}, classes)

    def _decoded(self, path: Path) -> npt.NDArray[np.uint8] | str:
        """Return the pixels `[H, W, C]` of a file, or why there are none."""
        import tensorflow as tf

        content = path.read_bytes()
        try:
            with tf.device("CPU"):
                if content.startswith(b"\xff\xd8"):
                    # The default may differ between processors, and the fingerprint with it.
                    method = "INTEGER_ACCURATE"
                    image = tf.io.decode_jpeg(content, channels=self.channels, dct_method=method)
                else:
                    image = tf.io.decode_png(content, channels=self.channels)
                if image.shape[:2] != self.size:
                    image = tf.cast(tf.round(tf.image.resize(image, self.size)), tf.uint8)
            return np.asarray(image)
        except tf.errors.OpError as error:
            return re.sub(r"^\{\{.*?\}\} |\.? \[Op:\w+\]$", "", str(error.message))


class TextFolder:
    """Texts `text` `[N, 1]` of sub-folders, one for each class, or of labelled lines; `labels` `[N]` int64.

    `metadata["classes"]` is the sorted list of the classes, which the labels number. In a folder, each file
    `.txt` is a text, and its sub-folder's name is its class; hidden files are passed over. In a file, each
    line is a text behind its class and a tab; blank lines are passed over. Texts are UTF-8.

    All texts are held as wide as the longest of them.

    Args:
        path: A folder or a file of the training texts.
        test_path: A folder or a file of the test texts, with the same classes. `None` takes texts of `path`.
        batch_size: Rows in a batch.
        split: Which texts are the test split, if there is no `test_path`: the `tail` of the sorted names or
            of the lines, a `random` choice, or a choice `stratified` by the class.
        test_fraction: Fraction of the texts that is the test split.
        seed: Seeds the choice of the test split.
    """

    def __init__(
        self,
        *,
        path: Path,
        test_path: Path | None = None,
        batch_size: Annotated[int, ">= 1"] = 32,
        split: Split = "stratified",
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
        seed: Annotated[int, ">= 0"] = 0,
    ) -> None:
        self.path = path
        self.test_path = test_path
        self.batch_size = batch_size
        self.split: Split = split
        self.test_fraction = test_fraction
        self.seed = seed

    def load(self) -> Dataset:
        """Read the texts.

        Raises:
            DataError: There are no classes, or files or lines are no labelled texts; the message names up to
                5 of them.
        """
        return _load(self, self._read)

    def _read(self, path: Path, classes: Sequence[str] | None) -> _Examples:
        if path.is_file():
            lines = [*_labelled_lines(path)]
            names = [label for label, _ in lines]
            classes = _known_classes(path, sorted({*names}), classes)
            labels = _numbered(names, classes)
            texts = [text for _, text in lines]
        else:
            files, labels, classes = _files_by_class(path, (".txt",), classes)
            texts = [_decoded(file, file.read_bytes()) for file in files]
        return _Examples({"text": np.array(texts, object)[:, np.newaxis], "labels": labels}, classes)


def _load(
    source: ImageFolder | TextFolder, read: Callable[[Path, Sequence[str] | None], _Examples]
) -> Dataset:
    """Return the data set of a source, with its own test files or with some of its examples held out."""
    examples = read(source.path, None)
    if source.test_path is None:
        labels = examples.arrays["labels"]
        test_rows = held_out(
            len(labels), source.split, test_fraction=source.test_fraction, seed=source.seed, classes=labels
        )
        train, test = divide(examples.arrays, test_rows)
    else:
        train, test = examples.arrays, read(source.test_path, examples.classes).arrays
    return Dataset(
        train=train,
        test=test,
        batch_size=source.batch_size,
        metadata={"classes": [*examples.classes]},
    )


def _files_by_class(
    folder: Path, suffixes: Sequence[str], classes: Sequence[str] | None
) -> tuple[list[Path], npt.NDArray[np.int64], Sequence[str]]:
    """Return the files of the sub-folders of a folder, sorted, the label of each, and the classes.

    Args:
        folder: The folder.
        suffixes: The endings that the files must have.
        classes: The classes if they are known, of which the sub-folders must be some.

    Raises:
        DataError: The folder is missing, or has other files or other classes.
    """
    try:
        folders = [path for path in _visible(folder) if path.is_dir()]
        found = _known_classes(folder, [path.name for path in folders], classes)
        files = [file for path in folders for file in _visible(path)]
    except OSError as error:
        raise DataError(
            f"data.path and data.test_path must name a folder of classes. {error.filename}: {error.strerror}."
        ) from error
    problems = [
        f"{file} must be one of {', '.join(suffixes)}. Convert it, or remove it."
        for file in files
        if file.suffix.lower() not in suffixes or not file.is_file()
    ]
    used = {file.parent for file in files}
    problems += [
        f"{path} must have a file of its class. It is empty." for path in folders if path not in used
    ]
    refuse(problems)
    return files, _numbered([file.parent.name for file in files], found), found


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _known_classes(path: Path, found: Sequence[str], classes: Sequence[str] | None) -> Sequence[str]:
    """Return the classes of a folder or a file; if they are known, check those that were found.

    Raises:
        DataError: There are fewer than two classes, or one that is not known.
    """
    if classes is None and len(found) < 2:
        raise DataError(
            f"{path} must have at least two classes: a sub-folder for each, or in a file of texts a name and "
            f"a tab in front of each line. Received: {', '.join(found) or 'none'}."
        )
    if unknown := sorted({*found} - {*(classes or found)}):
        raise DataError(f"{path} must have classes of data.path, {classes}. Received also: {unknown}.")
    return classes or found


def _numbered(names: Iterable[str], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int64)


def _labelled_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the class and the text of each line that is not blank.

    Raises:
        DataError: A line has no tab.
    """
    # Not `splitlines`, for which a text may end in the middle of a line, at a form feed for instance.
    lines = [
        (number, line.removesuffix("\r"))
        for number, line in enumerate(_decoded(path, path.read_bytes()).split("\n"), 1)
        if line.strip()
    ]
    refuse(
        f"{path}, line {number}: a line must have a class, a tab and a text. Write all three."
        for number, line in lines
        if line.find("\t") < 1
    )
    for _, line in lines:
        label, _, text = line.partition("\t")
        yield label, text


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} must be UTF-8 text. Line {line} is not: {error.reason}. Convert it, for instance with "
            "iconv."
        ) from error
