"""Small sets for the tests of pairs: procedural pictures, folders with embedded and with path-backed images."""

import io
import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from q_hawkeye_trl.demo.contents import draw_content


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A procedural picture, different for each seed."""
    return Image.fromarray(draw_content(seed)).resize(size, Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def dataset(images: list, first: int = 0, **columns: list) -> Dataset:
    """Rows with these images (pictures, bytes or paths) and the columns of a prepared set."""
    stored = [{"bytes": png(i), "path": None} if isinstance(i, Image.Image) else i for i in images]
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
    """Saves a folder that `load_from_disk` reads; unlike `save_to_disk` it leaves images behind paths there."""
    if isinstance(data, DatasetDict):
        for name, split in data.items():
            save(folder / name, split)
        (folder / "dataset_dict.json").write_text('{"splits": ["' + '", "'.join(data) + '"]}')
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
