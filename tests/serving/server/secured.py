"""Secrets and certificates of servers that ask for an API key."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import SERVICE

KEY = "correct-horse"
SECRET = "battery-staple"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Files of a self-signed certificate."""

    chain: Path
    key: Path


def make_certificate(folder: Path, name: str) -> CertificateFiles:
    certificate = CertificateFiles(folder / f"{name}.crt", folder / f"{name}.key")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    files = ["-keyout", str(certificate.key), "-out", str(certificate.chain)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate


def infer_over(channel: grpc.Channel, *metadata: tuple[str, str]) -> Any:
    call: Any = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    request = pb.ModelInferRequest(model_name="sample")
    request.parameters["seed"].int64_param = 4
    return call(request, timeout=10, metadata=metadata)
