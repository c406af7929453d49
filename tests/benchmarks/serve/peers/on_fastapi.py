# mypy: ignore-errors
"""FastAPI by hand. `async`, because the thread pool costs more than the model does."""

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from session import open_session

app = FastAPI()
session = open_session()


class Request(BaseModel):
    x: list[list[list[int]]]


class Answer(BaseModel):
    x_loc: list[list[list[float]]]


@app.post("/reconstruct")
async def reconstruct(request: Request) -> Answer:
    (x_loc,) = session.run(None, {"x": np.array(request.x, np.uint8)})
    return Answer(x_loc=x_loc.tolist())
