"""Find the model that a training starts from: a version, a bundle folder or a training run."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.training.warm_start import InitialModel


def fetch_initial(reference: str) -> "InitialModel | None":
    """Return the model that `--init-from` names; None if it names none.

    Of the reference it keeps what cannot move: an alias becomes the version that it names now.
    """
    from pipeline.model.checkpoint import checkpoint_of, load_checkpoint
    from pipeline.tracking import CHECKPOINT, fetch_artifact
    from pipeline.training.warm_start import InitialModel
    from serving.source import open_source

    if not reference:
        return None
    if re.fullmatch("[0-9a-f]{32}", reference) and not Path(reference).exists():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = load_checkpoint(fetch_artifact(reference, CHECKPOINT, Path(folder)))
        return InitialModel(checkpoint, {"from": reference})
    source = open_source(reference)
    place = str(source.bundle.path.absolute())
    if source.version is not None:
        place = f"models:/{source.name}/{source.version}"
    digest = source.bundle.manifest.digest
    return InitialModel(checkpoint_of(source.bundle), {"from": place, "sha256": digest})
