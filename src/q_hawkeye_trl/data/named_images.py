"""Images of a dataset whose errors name the file: `datasets` says that an image is broken, but not which."""

from datasets import Dataset, Image, List
from PIL.Image import DecompressionBombError

from .images import BROKEN

_IMAGE_COLUMNS = ("image", "images", "degraded_image", "degraded_images")


class NamedImage(Image):
    """The `Image` feature of `datasets`, whose decoding names the file that can't be read."""

    def decode_example(self, value: dict, token_per_repo_id=None):
        """
        Decodes one image.

        Args:
            value (`dict`):
                `path` and `bytes` of the image.
            token_per_repo_id (`dict`, *optional*):
                As `datasets` has it.

        Returns:
            `PIL.Image.Image`: Decoded and upright.

        Raises:
            `ValueError`: The file is missing, truncated or no image; the message names it.
        """
        try:
            return super().decode_example(value, token_per_repo_id)
        except (*BROKEN, DecompressionBombError) as error:
            source = value.get("path") or "an image embedded in the dataset"
            raise ValueError(
                f"{source} is not a readable image ({error}): fetch the file again, or drop its row."
            ) from error


def name_images(dataset: Dataset) -> Dataset:
    """
    Lets the errors of a dataset's images name the file.

    Args:
        dataset (`Dataset`):
            Rows with images in the columns `image` or `images` and their degraded twins.

    Returns:
        `Dataset`: The same rows.
    """
    features = dataset.features.copy()
    for column in set(_IMAGE_COLUMNS) & set(features):
        if isinstance(features[column], Image):
            features[column] = NamedImage(mode=features[column].mode, decode=features[column].decode)
        elif isinstance(getattr(features[column], "feature", None), Image):
            features[column] = List(NamedImage())
    return dataset.cast(features)
