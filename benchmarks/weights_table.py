"""Tabulates all published weights that the zoo loads: hosts, formats, digests, and what they are checked against.

python -m benchmarks.weights_table --readme=docs/weights.md
"""

import dataclasses
from pathlib import Path
from urllib.parse import urlsplit

from recipes import _main
from zoo import manifest
from zoo.markdown import make_table

HEAD = ("weights", "network", "preset", "top-1, %", "forms", "hosts, in the order of trying", "digest", "checked")
# What the tests compare. Each test builds the network, loads weights by the code's names, and compares logits or, for
# checkpoints, every variable.
_CHECKED = {
    "keras": "keras.applications' network with the same weights",
    "timm": "logits of timm's network (parity fixtures)",
    "torchvision": "logits of torchvision's network (parity fixtures)",
    "quark0": "logits of quark0/darts' network (parity fixtures)",
    "mit": "logits of mcunet's network; mcunet_in3 with its published weights",
    "slim": "logits of TF-slim's network; checkpoints written under its names",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    readme: Path | None = None  # document in which to replace the part between the weights-table markers; none prints


PRESETS = {"default": Config(), "smoke": Config()}


def tabulate(config: Config) -> None:
    """Prints the table, or writes it into the document."""
    text = make_table(HEAD, [_row(entry) for entry in manifest.entries()])
    text += (
        "\n\n`python -m benchmarks.weights_table`. A digest is the publisher's own; 'first' stands for none: that of "
    )
    text += "the first download is kept, and later ones must equal it.\n"
    if config.readme is None:
        print(text)
    else:
        from benchmarks.zoo_table import replace_between  # imports TensorFlow
        from zoo.atomic import write_atomically

        old = config.readme.read_text(encoding="utf-8")
        write_atomically(config.readme, replace_between(old, "weights-table", text))


def _row(entry: manifest.Entry) -> tuple[str, ...]:
    def digest(source: manifest.Source) -> str:
        kinds = {
            "SHA-256": source.sha256,
            "start of SHA-256": source.sha256_prefix,
            "MD5": source.md5,
            "SHA-1": source.sha1_inside,
        }
        return next((name for name, value in kinds.items() if value), "first")

    return (
        entry.name,
        entry.model,
        entry.preset,
        f"{entry.top1:g}",
        ", ".join(dict.fromkeys(source.format for source in entry.sources)),
        ", ".join(urlsplit(source.url).netloc for source in entry.sources),
        ", ".join(dict.fromkeys(map(digest, entry.sources))),
        _CHECKED[entry.origin],
    )


if __name__ == "__main__":
    _main.run(tabulate, PRESETS)
