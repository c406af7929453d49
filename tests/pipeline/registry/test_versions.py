import hashlib
import json

from pipeline.registry.versions import lineage_tags, register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.mlflow_store import connect
from tests.trained_models import Trained


def test_the_tags_tell_where_a_version_comes_from(sealed: Bundle, trained: Trained) -> None:
    checkpoint, dataset = trained
    config = json.dumps(checkpoint.config.to_json(), sort_keys=True, separators=(",", ":"))
    assert lineage_tags(sealed) == {
        "bundle.sha256": sealed.manifest.digest,
        "run.id": "None",
        "git.sha": "0" * 40,
        "git.dirty": "False",
        "config.sha256": hashlib.sha256(config.encode()).hexdigest(),
        "data.source": dataset.source,
        "data.train.sha256": dataset.train.sha256,
        "data.valid.sha256": dataset.valid.sha256,
        "data.test.sha256": dataset.test.sha256,
        "parity.status": "passed",
        "precision": "float32",
        "elbo": str(sealed.read_json("metrics.json")["elbo"]),
    }


def test_the_registry_shows_the_card_without_its_pictures(sealed: Bundle, store: object) -> None:
    with tracked_run("test") as run:
        register_bundle(run, sealed, "vae")
    description = connect().get_model_version("vae", "1").description
    assert "![" not in description
    assert "each line above" not in description
    assert "## How good it is" in description
