# mypy: ignore-errors
"""MLServer: a custom runtime, as its documentation writes one."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import open_session


class Reconstruct(MLModel):
    async def load(self) -> bool:
        self.session = open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (x_loc,) = self.session.run(None, {"x": x})
        output = NumpyCodec.encode_output("x_loc", x_loc)
        return InferenceResponse(model_name=self.name, outputs=[output])
