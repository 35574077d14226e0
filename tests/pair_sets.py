"""Small sets of procedural pictures for the tests of pairs, and what the tests read from folders of pairs."""

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from q_hawkeye_trl.demo.contents import draw_content
from q_hawkeye_trl.pairs.pair_manifest import read_manifest
from q_hawkeye_trl.pairs.pair_run import PairSummary, make_pairs
from q_hawkeye_trl.pairs.pair_settings import PairSettings


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A procedural picture, different for each seed."""
    return Image.fromarray(draw_content(seed)).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def saved(folder: Path, numbers: range, size: tuple[int, int] = (64, 48)) -> list[Path]:
    """Pictures as files."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.png" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        picture(number, size).save(file)
    return files


def dataset(images: list | int, first: int = 0, **columns: list) -> Dataset:
    """Rows with these images (pictures, bytes or paths, or a number of pictures) and the columns of a prepared set."""
    images = [picture(first + number) for number in range(images)] if isinstance(images, int) else images
    stored = [encoded(image) if isinstance(image, Image.Image) else image for image in images]
    stored = [{"bytes": i, "path": None} if isinstance(i, bytes) else i for i in stored]
    stored = [{"bytes": None, "path": str(i)} if isinstance(i, str | Path) else i for i in stored]
    rows = {
        "image": stored,
        "image_id": [f"{first + number}.png" for number in range(len(images))],
        "dataset": ["koniq10k" if number % 2 else "spaq" for number in range(len(images))],
        "mos": [1.0 + number % 5 for number in range(len(images))],
        **columns,
    }
    rows = {name: values for name, values in rows.items() if values is not None}
    return Dataset.from_dict(rows).cast_column("image", ImageFeature())


def save(folder: Path, data: Dataset | DatasetDict) -> Path:
    """Save a folder that `load_from_disk` reads; unlike `save_to_disk`, images behind paths stay there."""
    if isinstance(data, DatasetDict):
        for name, split in data.items():
            save(folder / name, split)
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(data)}))
        return folder
    without = data.remove_columns("image").add_column("image", [None] * len(data), feature=ImageFeature())
    without.select_columns(data.column_names).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "data-00000-of-00001.arrow"}]  # an empty set was given none
    (folder / "state.json").write_text(json.dumps(state))
    table, schema = data.with_format("arrow")[:], data.features.arrow_schema
    with open(folder / "data-00000-of-00001.arrow", "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(table.cast(schema))
    return folder


def make(data: Path, out: Path, workers: int = 1, **settings) -> PairSummary:
    return make_pairs(data, out, PairSettings(**settings), workers=workers, progress=False)


def lines_of(folder: Path) -> list[dict]:
    return read_manifest(folder).to_pylist()


def views_of(folder: Path, split: str | None = None) -> dict[str, bytes | None]:
    """The PNG files of the degraded views by image_id."""
    data = load_from_disk(str(folder))
    rows = (data[split] if split else data).with_format("arrow")[:].select(["image_id", "degraded_image"])
    return {row["image_id"]: row["degraded_image"] and row["degraded_image"]["bytes"] for row in rows.to_pylist()}


def files_of(folder: Path) -> dict[str, str]:
    """Hashes of all files in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
