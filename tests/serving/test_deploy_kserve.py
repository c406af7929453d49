"""A KServe resource runs the image, and its names are ones that Kubernetes takes."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from serving.bundle import Bundle
from serving.deploy import TARGETS, DeployTarget, write_deployment
from serving.errors import UsageRefused
from serving.source import Source
from tests.serving.deployments import HOSTILE, container, parse_yaml


def test_kserve_resource_of_a_version(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "kserve", tmp_path / "out")
    probe = {"periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3, "successThreshold": 1}
    live = {"initialDelaySeconds": 60, "periodSeconds": 10, "timeoutSeconds": 2}
    assert parse_yaml(tmp_path / "out" / "inferenceservice.yaml") == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "vae",
            "annotations": {
                "vae-pipeline/model": "models:/vae/7",
                "vae-pipeline/bundle-sha256": registered.bundle.manifest.digest,
            },
        },
        "spec": {
            "predictor": {
                "containers": [
                    {
                        "name": "kserve-container",
                        "image": f"vae-serve:{metadata.version('vae-pipeline')}",
                        "command": ["vae", "serve"],
                        "args": [
                            *("--model", "models:/vae/7", "--host", "0.0.0.0"),
                            *("--port", "8080", "--grpc-port", "8081"),
                        ],
                        "env": [
                            {"name": "PROTOCOL", "value": "v2"},
                            {
                                "name": "MLFLOW_TRACKING_URI",
                                "value": "http://mlflow.example.com:5000",
                            },
                        ],
                        "ports": [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}],
                        "readinessProbe": {
                            "httpGet": {"path": "/v2/health/ready", "port": 8080},
                            **probe,
                        },
                        "livenessProbe": {
                            "httpGet": {"path": "/v2/health/live", "port": 8080},
                            **live,
                        },
                        "resources": {
                            "requests": {"cpu": "1", "memory": "1Gi"},
                            "limits": {"cpu": "2", "memory": "2Gi"},
                        },
                    }
                ]
            }
        },
    }


def test_kserve_runs_the_bundle_in_the_image(bundle: Bundle, tmp_path: Path) -> None:
    found = container(Source(bundle), tmp_path / "out")
    assert found["image"] == f"vae-serve:{bundle.manifest.digest[:12]}"
    assert found["args"][:2] == ["--model", "/srv/bundle"]
    assert found["env"] == [{"name": "PROTOCOL", "value": "v2"}]


def test_kserve_says_what_to_change_for_grpc(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "kserve", tmp_path / "out")
    text = (tmp_path / "out" / "inferenceservice.yaml").read_text()
    assert "{name: h2c, containerPort: 8081}" in text
    assert "tcpSocket: {port: 8081}" in text


def test_kserve_takes_another_image(registered: Source, tmp_path: Path) -> None:
    image = "registry.example.com:5000/team/vae@sha256:abc"
    assert container(registered, tmp_path / "out", image=image)["image"] == image


@pytest.mark.parametrize("image", ["", "a b", 'a"', "a\n", "-a", "$(x)"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_that_is_no_name_is_refused(
    registered: Source, tmp_path: Path, target: DeployTarget, image: str
) -> None:
    with pytest.raises(UsageRefused, match=r"image must be REPOSITORY:TAG or .*, got "):
        write_deployment(registered, target, tmp_path / "out", image=image)


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("vae", "vae"),
        ("Team.VAE_2", "team-vae-2"),
        ("3d", "vae-3d"),
        ("--", "vae"),
        ("ä", "vae"),
        (HOSTILE, "va-e-x-user-root-home-x-y"),
        ("a" * 39 + " b", "a" * 39),
        ("9" * 90, "vae-" + "9" * 36),
    ],
)
def test_kserve_resource_has_a_name_that_kserve_takes(
    bundle: Bundle, tmp_path: Path, name: str, resource: str
) -> None:
    write_deployment(Source(bundle, name, "7"), "kserve", tmp_path / "out")
    found = parse_yaml(tmp_path / "out" / "inferenceservice.yaml")["metadata"]["name"]
    assert found == resource
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", found)  # IsvcNameFmt of KServe


def test_a_hostile_name_stays_a_string_for_kserve(bundle: Bundle, tmp_path: Path) -> None:
    found = container(Source(bundle, HOSTILE, "7"), tmp_path / "out")
    plain = container(Source(bundle, "vae", "7"), tmp_path / "plain")
    # Kubernetes expands $(HOME), and reads $$ as one $
    assert found["args"][1] == f"models:/{HOSTILE}/7".replace("$", "$$")
    assert found == {**plain, "args": [plain["args"][0], found["args"][1], *plain["args"][2:]]}
    annotations = parse_yaml(tmp_path / "out" / "inferenceservice.yaml")["metadata"]["annotations"]
    assert annotations["vae-pipeline/model"] == f"models:/{HOSTILE}/7"
