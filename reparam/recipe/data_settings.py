"""Data settings: which images are read and how; one table for flags and `args.yaml`.

Names and meanings are timm's. What the model was made for (image size, channels, classes) is the model's to say and
stands in its own record; the settings here only override how images are prepared for it.
"""

from dataclasses import dataclass, fields

from reparam.recipe.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where images come from and how they are prepared; None or an empty text leaves the choice to the model."""

    data_dir: str | None = setting(None, "Folder of the data set; for hfds/ the folder where downloads are kept.")
    dataset: str = setting(
        "",
        "Kind and name: empty for an image folder, hfds/NAME-or-FOLDER, torch/NAME; as streams "
        "hfids/NAME-or-FOLDER, wds/.",
    )
    train_split: str = setting("train", "Name of the training split, or its folder inside the data folder.")
    val_split: str = setting("validation", "Name of the evaluation split, or its folder inside the data folder.")
    dataset_download: bool = setting(False, "Download a torch/ data set that is not there yet.")
    class_map: str = setting("", "Text file with one class name per line, in the order of the model's outputs.")
    input_key: str | None = setting(None, "Column of the images in an hfds/ data set.")
    target_key: str | None = setting(None, "Column of the labels in an hfds/ data set.")
    train_num_samples: int | None = setting(None, "Training images of a streamed data set, which cannot be counted.")
    val_num_samples: int | None = setting(None, "Evaluation images of a streamed data set, which cannot be counted.")

    train_interpolation: str = setting("random", "Resize filter for training: random, bilinear or bicubic.")
    interpolation: str = setting("", "Resize filter for evaluation.")
    crop_pct: float | None = setting(None, "Share of the image that the centre crop of an evaluation image keeps.")
    mean: tuple[float, ...] | None = setting(None, "Mean of each channel, in [0, 1].")
    std: tuple[float, ...] | None = setting(None, "Standard deviation of each channel, in [0, 1].")

    @property
    def is_stream(self) -> bool:
        """Whether the images come in an order that cannot be sought."""
        return self.dataset.lower().startswith(("hfids/", "tfds/", "wds/"))


DATA_SETTING_NAMES: tuple[str, ...] = tuple(f.name for f in fields(DataSettings))
